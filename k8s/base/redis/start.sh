# Passwords come from the environment and are written to a file in memory that only this user can read. The
# server then replaces the shell and receives its signals. components/keda sets KEDA_PASSWORD.
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
