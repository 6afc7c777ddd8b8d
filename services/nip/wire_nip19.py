"""Between nipmesh.nip.v1.Nip19Entity and the domain."""

from __future__ import annotations

from nipmesh.nip.v1 import nip_service_pb2 as pb
from services.nip.domain.nip19 import (
    Address,
    Entity,
    EventPointer,
    Note,
    PrivateKey,
    Profile,
    PublicKey,
    RelayAddress,
)


def entity_of(message: pb.Nip19Entity) -> Entity:
    """Return the entity of a message, which has one."""
    match message.WhichOneof("entity"):
        case "public_key":
            return PublicKey(pubkey=message.public_key.pubkey)
        case "note":
            return Note(event_id=message.note.event_id)
        case "profile":
            return Profile(pubkey=message.profile.pubkey, relays=tuple(message.profile.relays))
        case "event":
            return _event_of(message.event)
        case "address":
            return _address_of(message.address)
        case "relay":
            return RelayAddress(url=message.relay.url)
    return PrivateKey()


def _event_of(event: pb.Nip19Entity.Event) -> EventPointer:
    kind = event.kind if event.HasField("kind") else None
    return EventPointer(event_id=event.event_id, relays=tuple(event.relays), author=event.author, kind=kind)


def _address_of(address: pb.Nip19Entity.Address) -> Address:
    return Address(
        identifier=address.identifier, author=address.author, kind=address.kind, relays=tuple(address.relays)
    )


def entity_message(entity: Entity) -> pb.Nip19Entity:
    """Return the message of an entity; of a private key only that it is one."""
    kinds = pb.Nip19Entity
    match entity:
        case PublicKey():
            return kinds(public_key=kinds.PublicKey(pubkey=entity.pubkey))
        case Note():
            return kinds(note=kinds.Note(event_id=entity.event_id))
        case Profile():
            return kinds(profile=kinds.Profile(pubkey=entity.pubkey, relays=entity.relays))
        case EventPointer():
            event = kinds.Event(event_id=entity.event_id, relays=entity.relays, author=entity.author, kind=entity.kind)
            return kinds(event=event)
        case Address():
            address = kinds.Address(
                identifier=entity.identifier, author=entity.author, kind=entity.kind, relays=entity.relays
            )
            return kinds(address=address)
        case RelayAddress():
            return kinds(relay=kinds.RelayAddress(url=entity.url))
    return kinds(private_key=kinds.PrivateKey())
