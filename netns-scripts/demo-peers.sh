# shellcheck shell=bash
# The second half of `lab demo`: the lecture's picture with the programs that are made for it. A and S, each behind a NAT,
# register at P; A calls S, at first through P, then directly through the holes that both have punched; then N1 becomes
# another NAT in mid-call, and the call goes on through P. At the end the same with voices, and what of them was heard.

readonly PEERS_NAT=port-restricted # both: neither lets anybody in whom its host has not called
readonly CALL_INTERVAL=0.1

peers() {
    local peer
    PEERS_ID=peers$$
    title "4. A and S behind two NATs ($PEERS_NAT): they meet at P, a supernode"
    "$LAB" up two-nats --nat "$PEERS_NAT" --id "$PEERS_ID" --owner $$ >/dev/null
    drawing two-nats | sed -n '3,10p'
    in_peers() { "$LAB" exec "$PEERS_ID" "$@"; }

    begin supernode P "$SUPERNODE" --key "$DEMO_DIR/P.key" --listen 198.51.100.10:3478 --listen 198.51.100.11:3478
    wait_until 10 grep -q listening "$DEMO_DIR/supernode.log" || die "demo: P: $(tail -n 1 "$DEMO_DIR/supernode.log")"
    begin listener S "$TRAVERSE" listen --key "$DEMO_DIR/S.key" --supernode 198.51.100.10:3478
    wait_until 10 grep -q listening: "$DEMO_DIR/listener.log" || die "demo: S: $(tail -n 1 "$DEMO_DIR/listener.log")"
    peer=$("$TRAVERSE" id --key "$DEMO_DIR/S.key")
    printf '\n%s  S$ traverse listen%s\n  %s\n' "$GREEN" "$PLAIN" "$(grep listening: "$DEMO_DIR/listener.log")"

    printf '\n%s  A$ traverse ping %.12s…%s\n' "$GREEN" "$peer" "$PLAIN"
    begin caller A "$TRAVERSE" ping --key "$DEMO_DIR/A.key" --supernode 198.51.100.10:3478 --interval "$CALL_INTERVAL" "$peer"
    call_is direct 10 || die "demo: the call did not get direct: $(tail -n 3 "$DEMO_DIR/caller.log")"
    sleep 0.5
    head -n 6 "$DEMO_DIR/caller.log" | peer_names
    say "  The first packets went through P, encrypted from A to S; P saw who calls whom, and no more. Meanwhile both"
    say "  told each other their addresses, and sent to each other at once: each packet opened its own NAT for the other's."

    title "5. N1 becomes a symmetric NAT in mid-call, as when a laptop changes its network"
    printf '\n%s  N1$ natbox set --nat symmetric; natbox flush%s\n' "$GREEN" "$PLAIN"
    local before
    before=$(wc -l <"$DEMO_DIR/caller.log")
    "$LAB" nat "$PEERS_ID" N1 set --nat symmetric >/dev/null
    "$LAB" nat "$PEERS_ID" N1 flush >/dev/null
    call_is relay 20 || die "demo: the call did not fall back to P: $(tail -n 3 "$DEMO_DIR/caller.log")"
    sleep 0.5
    tail -n "+$before" "$DEMO_DIR/caller.log" | awk '{ print } / ms  relay/ && ++relayed == 3 { exit }' | peer_names
    say "  No number is missing: one packet waited, a second at most, until its path was given up, and went through P. The"
    say "  call stays there, since a symmetric NAT gives every destination another port; traverse goes on looking all the same."
    voices
    "$LAB" down "$PEERS_ID"
}

# The same with sound: examples/call.
voices() {
    local peer
    title "6. The call itself: A and S talk, and N1 becomes a symmetric NAT again while they do"
    "$LAB" nat "$PEERS_ID" N1 set --nat "$PEERS_NAT" >/dev/null
    "$LAB" nat "$PEERS_ID" N1 flush >/dev/null
    begin called S "$CALL" 198.51.100.10:3478
    wait_until 10 grep -q 'waiting to be called' "$DEMO_DIR/called.log" || die "demo: S: $(tail -n 1 "$DEMO_DIR/called.log")"
    peer=$(sed -n 's/^waiting to be called: call [^ ]* //p' "$DEMO_DIR/called.log")
    printf '\n%s  S$ call P%s\n' "$GREEN" "$PLAIN"
    printf '%s  A$ call P %.12s… --seconds 10 --compare voice:2%s\n' "$GREEN" "$peer" "$PLAIN"
    begin voice A "$CALL" 198.51.100.10:3478 "$peer" --seconds 10 --compare voice:2
    wait_until 10 grep -q '→ direct' "$DEMO_DIR/voice.log" || die "demo: the call did not get direct: $(tail -n 3 "$DEMO_DIR/voice.log")"
    sleep 3
    "$LAB" nat "$PEERS_ID" N1 set --nat symmetric >/dev/null
    "$LAB" nat "$PEERS_ID" N1 flush >/dev/null
    wait_until 10 grep -q '→ relay' "$DEMO_DIR/voice.log" || die "demo: the call did not fall back to P: $(tail -n 3 "$DEMO_DIR/voice.log")"
    wait_until 20 grep -q 'against the reference' "$DEMO_DIR/voice.log" || die "demo: the call: $(tail -n 3 "$DEMO_DIR/voice.log")"
    sed -e 's/talking to [a-z2-7]*/talking to S/' "$DEMO_DIR/voice.log" | peer_names
    say "  What A heard is compared with what S said, encoded and decoded without a network. The longest gap is the time in"
    say "  which the direct path was dead and nobody knew: from then on packets go both ways until it is certain."
}

# begin NAME HOST COMMAND…: in the background, with its words in NAME.log.
begin() {
    local name=$1 host=$2
    shift 2
    : >"$DEMO_DIR/$name.log" # there before anybody looks for it
    in_peers "$host" -- "$@" >"$DEMO_DIR/$name.log" 2>&1 </dev/null &
}

# call_is KIND SECONDS: waits until the call's latest round trip went that way.
call_is() { wait_until "$2" latest_is "$1"; }
latest_is() { tail -n 1 "$DEMO_DIR/caller.log" | grep -q " ms  $1"; }

peer_names() {
    sed -e 's/198\.51\.100\.10\b/P/; s/203\.0\.113\.11\b/N1/; s/203\.0\.113\.12\b/N2/' -e 's/connected to [a-z2-7]*/connected to S/' -e 's/^/  /'
}
