#!/bin/sh
# A slice: answers HTTP on $PORT. Python's own file server does the talking.
cd "$TMPDIR" && echo "hello from $AETHER_SLICE $AETHER_VERSION" >index.html
exec python3 -m http.server --bind 127.0.0.1 "$PORT"
