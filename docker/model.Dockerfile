# The model image: policy, reward and reference service, and the trainer.
#   docker build -f docker/model.Dockerfile -t fairlead-model .
# torch from PyPI for Linux includes CUDA. Without a GPU, a much smaller build is enough:
#   --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# The index of all platforms of this tag; docker/pin.py renews the digest.
ARG BASE=docker.io/library/debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251

FROM ${BASE} AS build
# Package index to use instead of PyPI; see tests/images/build.sh.
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG TORCH_INDEX_URL
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv
RUN python3 -m venv /opt/fairlead
WORKDIR /src
COPY constraints.txt .
# A separate layer before the code, so that a change of the code does not download gigabytes again.
RUN /opt/fairlead/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
    ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} torch
COPY . .
RUN /opt/fairlead/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
    '.[train,triton,otel]' \
    && /opt/fairlead/bin/pip uninstall --yes pip

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
LABEL org.opencontainers.image.title="fairlead-model" \
      org.opencontainers.image.description="Model services and trainer of Fairlead" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${FAIRLEAD_COMMIT}" \
      org.opencontainers.image.base.name="${BASE}"
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["fairlead", "--help"]
