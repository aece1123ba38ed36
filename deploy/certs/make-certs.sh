#!/bin/sh
# A development CA and one certificate of it, for every process of a cluster: as a server and as a client.
#
#   deploy/certs/make-certs.sh FOLDER [HOST...]
#
# Writes FOLDER/ca.pem, ca.key, penstock.pem and penstock.key. The certificate names localhost, 127.0.0.1, ::1 and every
# HOST, a name or an IP address. A CA that is there is kept, so that the next run renews the certificate; the CA's key is
# for this folder alone. DAYS (30) is how long the certificate lasts. Production has a CA of its own.
set -eu

folder=${1:?usage: make-certs.sh FOLDER [HOST...]}
shift
umask 077
mkdir -p "$folder"
work=$(mktemp -d "$folder/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT

quietly() {
    "$@" 2>"$work/said" || { cat "$work/said" >&2; exit 1; }
}

if [ ! -e "$folder/ca.pem" ]; then
    quietly openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj "/CN=Penstock development CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$folder/ca.key" -out "$work/ca.pem"
    chmod a+r "$work/ca.pem"
    mv "$work/ca.pem" "$folder/ca.pem"
fi

names="DNS:localhost,IP:127.0.0.1,IP:::1"
for host in "$@"; do
    case $host in
        *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) names="$names,IP:$host" ;;
        *) names="$names,DNS:$host" ;;
    esac
done
cat >"$work/extensions" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$names
END

quietly openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=penstock" \
    -keyout "$work/penstock.key" -out "$work/request"
quietly openssl x509 -req -in "$work/request" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "${DAYS:-30}" -extfile "$work/extensions" -out "$work/penstock.pem"
chmod a+r "$work/penstock.pem"
# Two steps: whoever looks between them has the old key's name for a new key, which no process takes; it looks again.
mv "$work/penstock.key" "$folder/penstock.key"
mv "$work/penstock.pem" "$folder/penstock.pem"
