# The image of services whose engine is vLLM, on vLLM's own image with its versions of torch and transformers.
#   docker build -f docker/vllm.Dockerfile -t fairlead-vllm .
# It has not been built by the tests of this repository, which have no GPU; docs/vllm.md says which versions of vLLM
# are supported.
# `python docker/pin.py` pins it to a digest.
ARG BASE=docker.io/vllm/vllm-openai:v0.32.0

FROM ${BASE}
ARG PIP_INDEX_URL
USER root
# tini is process 1: it forwards signals and reaps orphaned processes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/log/*
WORKDIR /src
COPY . .
# Versions that are installed stay: vLLM was built for them.
RUN python3 -m pip freeze --exclude-editable | grep -v ' @ ' >/tmp/installed.txt \
    && python3 -m pip install --no-cache-dir --disable-pip-version-check --constraint /tmp/installed.txt '.[torch,otel]' \
    && ln -sf "$(command -v python3)" /usr/local/bin/python \
    && rm -rf /src /tmp/installed.txt
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The commit in `fairlead_build_info`: --build-arg FAIRLEAD_COMMIT=$(git rev-parse HEAD)
ARG FAIRLEAD_COMMIT
ENV FAIRLEAD_COMMIT=${FAIRLEAD_COMMIT}
# What the image contains, for scanners (CycloneDX).
RUN mkdir /usr/share/fairlead && python3 -m fairlead.sbom > /usr/share/fairlead/sbom.cdx.json
ARG BASE
LABEL org.opencontainers.image.title="fairlead-vllm" \
      org.opencontainers.image.description="Model services of Fairlead with vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${FAIRLEAD_COMMIT}" \
      org.opencontainers.image.base.name="${BASE}"
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["fairlead", "--help"]
