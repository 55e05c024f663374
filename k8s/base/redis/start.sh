# Passwords come by the environment and go to a file in memory that only this user reads; then the shell
# becomes the server, which gets its signals. KEDA_PASSWORD is set by components/keda.
set -eu
umask 077
: "${REDIS_PASSWORD:?is empty: set the key password of the Secret redis}"
{
    cat /etc/valkey/valkey.conf
    printf 'requirepass "%s"\n' "$REDIS_PASSWORD"
    if [ -n "${KEDA_PASSWORD:-}" ]; then
        printf 'user keda on ">%s" ~fairlead:* +info +xinfo +xlen +xpending +ping +hello +client\n' "$KEDA_PASSWORD"
    fi
} >/run/valkey/server.conf
unset REDIS_PASSWORD KEDA_PASSWORD
exec valkey-server /run/valkey/server.conf
