#!/usr/bin/env bash
# Builds both images with buildah, without a daemon, and checks their contents. Run as root:
#
#     tests/images/build.sh [--wheels] [FOLDER]
#
# With --wheels it only builds the wheels and checks that both images can be installed from them; this needs neither
# root nor buildah. FOLDER (by default a temporary one) receives the wheels, which pip downloads with the settings of this machine;
# the build itself uses no package index. If no registry can be reached, the base image is created with
# debootstrap from the mirror that apt uses.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The base of the Dockerfiles, by its digest; an old buildah takes no tag next to one.
base=$(sed -n 's/^ARG BASE=//p' docker/light.Dockerfile)
base=${base%%:*}@${base##*@}
made=localhost/debian-slim
suite=bookworm
python=${PYTHON:-python3.11}
wheels_only=
if [ "${1:-}" = --wheels ]; then wheels_only=yes && shift; fi
folder=${1:-$(mktemp -d)}
mkdir -p "$folder"
folder=$(realpath "$folder")
# chroot needs no namespaces and vfs no overlay mounts, so both also work inside a container.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}

say() { printf '%s\n' "== $*"; }
need() { command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install $2" >&2; exit 2; }; }

if [ -z "$wheels_only" ]; then
    [ "$(id -u)" = 0 ] || { echo "run this as root: the chroot isolation of buildah needs it" >&2; exit 2; }
    need buildah buildah
fi
need "$python" python3.11

mirror() {
    { cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
        sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb (\[[^]]*\] *)?([^ ]+) .*/\2/p' | grep -m1 '/debian/\?$'
}

make_base() {
    need debootstrap debootstrap
    local root=$folder/base container mirror_url
    mirror_url=$(mirror) || { echo "no Debian mirror in the sources of apt" >&2; exit 2; }
    say "no registry: creating $made with debootstrap"
    rm -rf "$root"
    debootstrap --variant=minbase "$suite" "$root" "$mirror_url" >"$folder/debootstrap.log"
    printf 'deb %s %s main\n' "$mirror_url" "$suite" >"$root/etc/apt/sources.list"
    printf 'deb %s-security %s-security main\n' "${mirror_url%/}" "$suite" >>"$root/etc/apt/sources.list"
    # Files that the slim image does not have.
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
        "$root"/usr/share/{doc,info,locale,man}/*
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$root" / >/dev/null
    buildah config --cmd bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --rm "$container" "$made" >/dev/null
    rm -rf "$root"
}

if [ -z "$wheels_only" ] && ! buildah inspect --type image "$base" >/dev/null 2>&1 &&
    ! timeout 60 buildah pull --quiet "$base" >/dev/null 2>&1; then
    buildah inspect --type image "$made" >/dev/null 2>&1 || make_base
    base=$made
fi

# Also the build backend, and a package that Debian's Python 3.11.2 needs and this machine's may not.
say "wheels"
"$python" -m pip wheel --quiet --quiet --disable-pip-version-check --constraint constraints.txt --wheel-dir "$folder/wheels" \
    '.[train,triton,feedback,postgres,otel]' hatchling async-timeout
rm -f "$folder"/wheels/fairlead_rlhf-*.whl
if [ -n "$wheels_only" ]; then
    # As the Dockerfiles install them.
    grep -ohE "'\.\[[a-z,]+\]'" docker/light.Dockerfile docker/model.Dockerfile | tr -d "'" | while read -r project; do
        "$python" -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --no-index \
            --find-links "$folder/wheels" --constraint constraints.txt "$project"
        say "$project can be installed from the wheels"
    done
    exit 0
fi

for image in light model; do
    say "fairlead-$image"
    buildah build --layers=false --file "docker/$image.Dockerfile" --tag "fairlead-$image" \
        --build-arg BASE="$base" --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels \
        --volume "$folder/wheels:/wheels:ro" . >"$folder/$image.log" 2>&1 ||
        { tail -20 "$folder/$image.log" >&2; exit 1; }
done

check() {
    local image=$1 container
    shift
    container=$(buildah from "fairlead-$image")
    buildah run "$container" -- "$@"
    buildah rm "$container" >/dev/null
}

say "checks"
for image in light model; do
    check "$image" fairlead --version
    # shellcheck disable=SC2016 # expanded inside
    check "$image" sh -c 'test "$(id -u)" = 10001 && ! touch /opt/fairlead/x 2>/dev/null && ! command -v pip'
    [ "$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "fairlead-$image")" = 10001:10001 ]
    # Its bill of materials names what is installed.
    check "$image" python -c '
import importlib.metadata as metadata, json, pathlib
listed = json.loads(pathlib.Path("/usr/share/fairlead/sbom.cdx.json").read_text())
found = {one["name"]: one["version"] for one in listed["components"]}
assert found["grpcio"] == metadata.version("grpcio") and "tini" in found, found
assert ("torch" in found) is ("'"$image"'" == "model"), found'
    # A secret could only come from the environment or an argument of the build.
    if buildah inspect --type image "fairlead-$image" | grep -iE 'password|token|secret'; then
        exit 1
    fi
done
check light python -c 'import services.rollout_worker.__main__, services.feedback.__main__, services.feedback.store.postgres, importlib.util as u; assert not u.find_spec("torch")'
check model python -c 'import trainer.ppo.__main__, services.policy.transformers_engine, services.reward.scorer'
# SIGTERM reaches the program through tini, and the program exits as it does without a container.
check light sh -c '
    tini -- python -m services.rollout_worker --set queue.redis_url=redis://127.0.0.1:1 2>/dev/null &
    sleep 10
    kill -TERM $!
    wait $!'

say "sizes"
buildah images --format '{{.Name}} {{.Size}}' | grep -E 'fairlead-(light|model)|debian'
