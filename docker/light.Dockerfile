# The light image: rollout worker, gateway, feedback service and command line, without torch.
#   docker build -f docker/light.Dockerfile -t fairlead-light .
# The index of all platforms of this tag; docker/pin.py renews the digest.
ARG BASE=docker.io/library/debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251

FROM ${BASE} AS build
# Package index to use instead of PyPI; see tests/images/build.sh.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
RUN python3 -m venv /opt/fairlead
WORKDIR /src
COPY . .
RUN /opt/fairlead/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt '.[feedback,postgres,otel]' \
    && /opt/fairlead/bin/pip uninstall --yes pip setuptools

FROM ${BASE}
# tini is process 1: it forwards signals and reaps orphaned processes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/log/*
COPY --from=build /opt/fairlead /opt/fairlead
ENV PATH=/opt/fairlead/bin:/usr/bin:/bin HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The commit in `fairlead_build_info`: --build-arg FAIRLEAD_COMMIT=$(git rev-parse HEAD)
ARG FAIRLEAD_COMMIT
ENV FAIRLEAD_COMMIT=${FAIRLEAD_COMMIT}
# What the image contains, for scanners (CycloneDX).
RUN mkdir /usr/share/fairlead && /opt/fairlead/bin/python -m fairlead.sbom > /usr/share/fairlead/sbom.cdx.json
ARG BASE
LABEL org.opencontainers.image.title="fairlead-light" \
      org.opencontainers.image.description="Rollout worker, gateway, feedback service and command line of Fairlead" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${FAIRLEAD_COMMIT}" \
      org.opencontainers.image.base.name="${BASE}"
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["fairlead", "--help"]
