#!/bin/sh
# Makes the two files of secrets that compose.yaml reads. It keeps a file that exists. Only the user
# who runs this can read them.
set -eu
umask 077
cd "$(dirname "$0")/.."
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
if [ ! -e worker-secret.env ]; then
    echo "SAMSERVE_WORKER_SECRET=$(random)" > worker-secret.env
fi
if [ ! -e redis-secret.env ]; then
    password=$(random)
    cat > redis-secret.env <<END
REDIS_PASSWORD=$password
SAMSERVE_REDIS_URL=redis://:$password@redis:6379/0
END
fi
