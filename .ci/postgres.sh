# Sourced by .ci/run: starts a PostgreSQL of our own, installing Debian's package where that is possible, and exports
# PENSTOCK_TEST_POSTGRES_URL. Leaves it unset where there can be none.
start_postgres() {
  if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    (apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql) \
      >/tmp/penstock-apt.log 2>&1 || { echo "apt-get cannot install postgresql here"; return 0; }
  fi
  bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -n 1) || true
  [ -n "$bin" ] || { echo "no PostgreSQL server on this machine"; return 0; }
  data=$(mktemp -d /tmp/penstock-pg.XXXXXX)
  as=()
  if [ "$(id -u)" = 0 ]; then chown postgres "$data"; as=(runuser -u postgres --); fi
  "${as[@]}" "$bin/initdb" -D "$data/db" -A trust -U penstock >/dev/null
  local port
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  "${as[@]}" "$bin/pg_ctl" -D "$data/db" -w -l "$data/log" \
    -o "-h 127.0.0.1 -p $port -k $data" start >/dev/null || { cat "$data/log"; return 0; }
  stop_postgres() { "${as[@]}" "$bin/pg_ctl" -D "$data/db" -m fast stop >/dev/null; rm -rf "$data"; }
  export PENSTOCK_TEST_POSTGRES_URL="postgresql://penstock@127.0.0.1:$port/postgres"
  echo "PostgreSQL at $PENSTOCK_TEST_POSTGRES_URL"
}
start_postgres
