"""Any sequence of orders to a few keys, on two replicas of a real store, against a model that knows no SQL, no seal and no table."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Awaitable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nipmesh.nip.v1 import nip_pb2
from services.chassis.secret import SecretBytes
from services.nip import wire
from services.nip.domain import nip49
from services.nip.domain.ciphers import Cipher
from services.nip.domain.keystore import Keystore, check_value_of
from services.nip.domain.nip49 import PasswordWrongError
from services.nip.key_life import AttemptsExceededError, KeyLife, Order
from services.nip.key_sweeper import sweep_keys
from services.nip.keyring import Keyring
from services.nip.keys import KeyNotFoundError, KeyRefusedError, Keys, NewKey, Signing
from services.nip.life_store import LifeStore
from services.nip.passwords import PasswordWork
from services.nip.store import MIGRATIONS, NipStore
from services.nostr.event import Template
from services.storage.database import Database

OWNER, PEER = "aa" * 32, "c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5"
PASSWORDS = [nip49.normalized(text) for text in ("first password", "second password")]
SECOND_US = 1_000_000
KEYS_AT_ONCE = 1
"""Few, so that one key is met often; deleted ones stay there."""
TEMPLATE = Template(kind=1, tags=(), content="", created_at=1)
replicas, passwords = st.integers(0, 1), st.integers(0, 1)


MET: Counter[tuple[str, str]] = Counter()
"""How often each method came to what: the machine is to have met all of it."""


class Model:
    """What should be true of one key."""

    def __init__(self) -> None:
        self.password: int | None = None
        self.unlocked_until_us = 0
        self.disabled = self.deleted = False
        self.wrong, self.blocked_until_us = 0, 0

    def usable(self, now_us: int) -> bool:
        return not self.deleted and not self.disabled and (self.password is None or now_us < self.unlocked_until_us)

    def state(self, now_us: int) -> int:
        if self.deleted:
            return nip_pb2.Key.STATE_DELETED
        if self.disabled:
            return nip_pb2.Key.STATE_DISABLED
        if self.password is None:
            return nip_pb2.Key.STATE_ACTIVE
        return nip_pb2.Key.STATE_UNLOCKED if now_us < self.unlocked_until_us else nip_pb2.Key.STATE_LOCKED

    def tries(self, password: int, now_us: int) -> str:
        """What comes of a password."""
        if now_us < self.blocked_until_us:
            return "exceeded"
        if password != self.password:
            self.wrong += 1
            pause_us = 0 if self.wrong < 5 else min(3_600, 30 * 2 ** (self.wrong - 5)) * SECOND_US
            self.blocked_until_us = now_us + pause_us
            return "wrong"
        self.wrong, self.blocked_until_us = 0, 0
        return "right"


class KeyLives(RuleBasedStateMachine):
    """Orders on either replica."""

    keys = Bundle("keys")

    @initialize()
    def start(self) -> None:
        self.runner, self.stack = asyncio.Runner(), ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="nm-life-"))
        self.now_us, self.models, self.generation = 1_700_000_000 * SECOND_US, dict[str, Model](), 5
        self._key_file().write_bytes(bytes([5]) * 32)
        self._key_file().chmod(0o600)
        self.replicas = [self.run(self._open()) for _ in range(2)]

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self.runner.run(awaited())

    def _key_file(self) -> Path:
        return self.folder / "keystore.key"

    async def _open(self) -> Any:
        database = await Database.open(self.folder / "nip.db", migrations=MIGRATIONS)
        store, life_store, words = (
            NipStore(database),
            LifeStore(database),
            self.stack.enter_context(closing(PasswordWork())),
        )
        keyring = await Keyring.open(store, self._key_file(), SecretBytes(self._key_file().read_bytes()))
        keys = Keys(store, life_store, keyring, words, clock=lambda: self.now_us)
        life = KeyLife(keys, life_store, keyring, words, clock=lambda: self.now_us, lock_log_n=1)
        return keys, life, life_store, database

    def outcome(self, name: str, work: Awaitable[Any]) -> str:
        found = self._outcome(work)
        MET[name, found] += 1
        return found

    def _outcome(self, work: Awaitable[Any]) -> str:
        try:
            self.run(work)
        except KeyRefusedError:
            return "refused"
        except KeyNotFoundError:
            return "missing"
        except PasswordWrongError:
            return "wrong"
        except AttemptsExceededError:
            return "exceeded"
        return "done"

    def order(self, key_id: str) -> Order:
        return Order(owner=OWNER, key_id=key_id, request_id=str(uuid.uuid4()))

    @rule(target=keys, replica=replicas)
    @precondition(lambda self: sum(not model.deleted for model in self.models.values()) < KEYS_AT_ONCE)
    def create(self, replica: int) -> str:
        new = NewKey(owner=OWNER, request_id=str(uuid.uuid4()), display_name="", secret_key=None)
        key, _ = self.run(self.replicas[replica][0].create(new))
        self.models[key.key_id] = Model()
        return str(key.key_id)

    @rule(replica=replicas, key=keys)
    def use(self, replica: int, key: str) -> None:
        model, opened = self.models[key], self.replicas[replica][0]
        expected = "done" if model.usable(self.now_us) else "missing" if model.deleted else "refused"
        signing = Signing(owner=OWNER, request_id="", key_id=key, template=TEMPLATE)
        assert self.outcome("sign", opened.sign(signing)) == expected
        assert self.outcome("encrypt", opened.encrypt(OWNER, key, PEER, "text", Cipher.NIP44)) == expected

    @rule(replica=replicas, key=keys, password=passwords)
    def lock(self, replica: int, key: str, password: int) -> None:
        model = self.models[key]
        found = self.outcome("lock", self.replicas[replica][1].lock(self.order(key), PASSWORDS[password]))
        if model.deleted:
            assert found == "missing"
        elif model.disabled or model.password is not None:
            assert found == "refused"
        else:
            assert found == "done"
            model.password, model.unlocked_until_us = password, 0

    @rule(replica=replicas, key=keys)
    def relock(self, replica: int, key: str) -> None:
        model = self.models[key]
        found = self.outcome("relock", self.replicas[replica][1].lock(self.order(key), None))
        if model.deleted:
            assert found == "missing"
        elif model.disabled or model.password is None:
            assert found == "refused"
        else:
            assert found == "done"
            model.unlocked_until_us = 0

    @precondition(lambda self: self.any_locked())
    @rule(replica=replicas, key=keys, wrong=st.integers(0, 3), seconds=st.none() | st.integers(20, 100))
    def unlock(self, replica: int, key: str, wrong: int, seconds: int | None) -> None:
        """With the right password, three times of four."""
        password = (self.models[key].password or 0) ^ (wrong == 0)
        self.try_password(replica, key, password, None if seconds is None else seconds * SECOND_US)

    @precondition(lambda self: self.any_locked())
    @rule(key=keys, guesses=st.integers(4, 7))
    def guess(self, key: str, guesses: int) -> None:
        """Wrong passwords, on both replicas in turn."""
        for number in range(guesses):
            self.try_password(number % 2, key, (self.models[key].password or 0) ^ 1, SECOND_US)

    @rule(replica=replicas, key=keys)
    def unlock_whatever(self, replica: int, key: str) -> None:
        self.try_password(replica, key, self.models[key].password or 0, None)

    def any_locked(self) -> bool:
        """Whether there is a key that its password would open."""
        return any(
            model.password is not None and not model.deleted and not model.disabled for model in self.models.values()
        )

    def try_password(self, replica: int, key: str, password: int, ttl_us: int | None) -> None:
        model = self.models[key]
        found = self.outcome("unlock", self.replicas[replica][1].unlock(self.order(key), PASSWORDS[password], ttl_us))
        if model.deleted:
            assert found == "missing"
        elif model.disabled or model.password is None:
            assert found == "refused"
        elif (tried := model.tries(password, self.now_us)) != "right":
            assert found == tried
        else:
            assert found == "done"
            model.unlocked_until_us = 0 if ttl_us is None else self.now_us + ttl_us
            model.password = None if ttl_us is None else model.password

    @rule(replica=replicas, key=keys, method=st.sampled_from(["disable", "enable", "enable", "enable", "delete"]))
    def switch(self, replica: int, key: str, method: str) -> None:
        model = self.models[key]
        found = self.outcome(method, getattr(self.replicas[replica][1], method)(self.order(key)))
        if model.deleted and method != "delete":
            assert found == "missing"
            return
        assert found == "done"
        if method == "delete":
            model.deleted = True
        elif method == "disable":
            model.unlocked_until_us, model.disabled = (0 if not model.disabled else model.unlocked_until_us), True
        else:
            model.disabled = False

    @precondition(lambda self: any(self.now_us < model.unlocked_until_us for model in self.models.values()))
    @rule(replica=replicas, early_us=st.integers(0, 1))
    def an_unlocking_runs_out(self, replica: int, early_us: int) -> None:
        until_us = min(each.unlocked_until_us for each in self.models.values() if self.now_us < each.unlocked_until_us)
        self.now_us = max(self.now_us, until_us - early_us)
        for key in self.models:
            self.use(replica, key)

    @rule(seconds=st.sampled_from([1, 29, 30, 60, 3_600]))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * SECOND_US

    @rule(replica=replicas)
    def sweep(self, replica: int) -> None:
        opened, _, life_store, _ = self.replicas[replica]
        self.run(sweep_keys(opened, life_store, clock=lambda: self.now_us))

    @rule(replica=replicas)
    def restart(self, replica: int) -> None:
        opened, _, _, database = self.replicas[replica]
        opened.close()
        self.run(database.close())
        self.replicas[replica] = self.run(self._open())

    @rule(replica=replicas)
    def rotate(self, replica: int) -> None:
        self.generation += 1
        new_key = SecretBytes(bytes([self.generation % 256]) * 32)
        store = NipStore(self.replicas[replica][3])

        async def resealed() -> None:
            row = await store.keystore()
            assert row is not None
            old_key = SecretBytes(self._key_file().read_bytes())
            assert row.fits(check_value_of(old_key))
            await store.reseal(Keystore(old_key, row.sealed_lasting), Keystore(new_key))

        self.run(resealed())
        self._key_file().write_bytes(new_key.reveal())

    @invariant()
    def both_tell_the_truth(self) -> None:
        for key_id, model in self.models.items():
            for opened, *_ in self.replicas:
                message = wire.key_message(self.run(opened.get(OWNER, key_id)), self.now_us)
                assert message.state == model.state(self.now_us)
                assert message.password_protected is (model.password is not None and not model.deleted)

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        for opened, _, _, database in self.replicas:
            opened.close()
            self.run(database.close())
        self.stack.close()
        self.runner.close()
        shutil.rmtree(self.folder)


WANTED = {
    **dict.fromkeys(("sign", "encrypt"), ("done", "refused", "missing")),
    **dict.fromkeys(("lock", "relock"), ("done", "refused", "missing")),
    "unlock": ("done", "refused", "missing", "wrong", "exceeded"),
    **dict.fromkeys(("disable", "enable"), ("done", "missing")),
    "delete": ("done",),
}


@pytest.mark.timeout(300)
def test_two_replicas_are_as_one_model() -> None:
    """The same sequences each time, so that what they met can be demanded."""
    MET.clear()
    once = settings(
        max_examples=60,
        stateful_step_count=40,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(KeyLives, settings=once)
    missed = {(name, found) for name, all_found in WANTED.items() for found in all_found} - set(MET)
    assert missed == set()
    assert MET["sign", "done"] > 20
    assert MET["unlock", "done"] > 20
