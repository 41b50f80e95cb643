#!/bin/sh
# The HTTP API with curl: tells a message, finds it, asks for a context, keeps a profile.
#
#     KEEPSAKE_URL=http://127.0.0.1:18380 sh examples/curl.sh anna
#
# It needs curl 7.76 or later. KEEPSAKE_KEY is a key of `ltm key create`, where the gateway asks for one. A user id with
# other characters than letters, digits, `-`, `_` and `.` must be escaped in JSON and in URLs.
set -eu

url=${KEEPSAKE_URL:-http://127.0.0.1:18380}
user=${1:-anna}
question="What is my cat called?"

# Sends METHOD PATH JSON. The response is printed also where it says what is wrong; then curl exits with 22.
send() {
    method=$1 path=$2 body=$3
    shift 3
    curl --silent --show-error --fail-with-body --max-time 10 --request "$method" "$url/v1/$path" \
        ${KEEPSAKE_KEY:+--header "Authorization: Bearer $KEEPSAKE_KEY"} \
        --header "Content-Type: application/json" --data "$body" "$@"
    echo
}

# With an Idempotency-Key it may be sent again where no answer came, and is one memory all the same.
send POST events \
    "{\"user_id\": \"$user\", \"content\": \"My cat is called Mochi.\", \"source\": \"user\", \"session\": \"s1\"}" \
    --header "Idempotency-Key: $(date +%s)-$$"

# It is searchable some tens of milliseconds later.
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    found=$(send POST memories/search "{\"user_id\": \"$user\", \"query\": \"$question\", \"deadline_ms\": 2000}")
    case $found in *Mochi*) break ;; esac
    sleep 1
done
echo "$found"

# All that a prompt needs: the profile, the memories that match, and a recap of earlier sessions.
send POST context "{\"user_id\": \"$user\", \"query\": \"$question\", \"max_chars\": 2000, \"deadline_ms\": 2000}"

# A JSON Merge Patch: null removes a key.
send PATCH "profile?user_id=$user" '{"name": "Anna", "city": null}'
