#!/usr/bin/env bash
# Starts SeaweedFS as an S3 store: seaweed.sh WEED FOLDER PORT, and prints its process id once it answers.
set -euo pipefail
weed=$1 folder=$2 port=$3
mkdir -p "$folder"
cat > "$folder/s3.json" <<'JSON'
{"identities":[{"name":"test","credentials":[{"accessKey":"AKIATEST","secretKey":"a-secret-of-the-test"}],
  "actions":["Admin","Read","Write","List","Tagging"]}]}
JSON
# Its other ports are derived from the S3 port, so that two stores can run.
"$weed" -logtostderr=true server -dir="$folder" -ip=127.0.0.1 -ip.bind=127.0.0.1 -s3 -s3.port="$port" \
  -s3.config="$folder/s3.json" -master.port=$((port + 1)) -volume.port=$((port + 2)) -filer.port=$((port + 3)) \
  -master.volumeSizeLimitMB=256 -volume.max=20 -master.telemetry=false > "$folder/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
  if curl --silent --output /dev/null "http://127.0.0.1:$port/status"; then
    echo "$pid"
    exit 0
  fi
  sleep 0.1
done
kill "$pid"
tail -5 "$folder/log" >&2
exit 1
