# shellcheck shell=bash
# `lab demo`: a NAT at work, packet by packet, in the notation of the lecture; then three programs that use it; then a call
# between two peers (demo-peers.sh).
#
# It runs as whoever called it: missing packages are installed and the programs are built first, then it needs privilege only
# for the lab itself. That is the caller's own user namespace where the machine has one and /dev/net/tun is open, and
# sudo where not.

readonly DEMO_PRESET=full-cone
readonly DEMO_TOOLS=(ip nft ping traceroute curl python3)

demo() {
    local spec=$DEMO_PRESET
    while (($#)); do
        case $1 in
            --nat) spec=${2:-} ;;
            --natbox) NATBOX=${2:-} ;;
            *) die "demo: '$1'? only --nat PRESET and --natbox PATH" ;;
        esac
        (($# > 1)) || die "demo: $1 needs a value"
        shift 2
    done
    check_spec "$spec"
    [[ $(spec_kind "$spec") == natbox ]] || die "demo: it shows what natbox does; the kernel's NAT doesn't tell"

    install_missing
    if [[ -z ${NATBOX:-} ]]; then
        command -v cargo >/dev/null || [[ -x ${HOME:-/root}/.cargo/bin/cargo || -n ${SUDO_USER:-} ]] ||
            die "cargo is missing: install Rust (https://rustup.rs)"
    fi
    printf 'Building natbox, traverse, supernode and the call (the first time takes some minutes) …\n'
    # One build for all of them, so that they have their dependencies in common.
    local targets=(--bin natbox --bin traverse --bin supernode --example call)
    NATBOX=$(find_program natbox "${NATBOX:-}" "${targets[@]}")
    TRAVERSE=$(find_program traverse "${TRAVERSE:-}" "${targets[@]}")
    SUPERNODE=$(find_program supernode "${SUPERNODE:-}" "${targets[@]}")
    CALL=$(find_program call "${CALL:-}" "${targets[@]}")
    export NATBOX TRAVERSE SUPERNODE CALL
    take_privilege "$spec"
    show_demo "$spec"
}

# install_missing: names what isn't there, and installs it where apt-get can; asks only somebody at a terminal.
install_missing() {
    local tool answer packages=() asroot=()
    for tool in "${DEMO_TOOLS[@]}"; do
        command -v "$tool" >/dev/null || packages+=("$(package_of "$tool")")
    done
    ((${#packages[@]})) || return 0
    command -v apt-get >/dev/null || die "missing: ${packages[*]} (Debian's names of the packages): install them"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "missing: apt-get install ${packages[*]} (as root)"
        asroot=(sudo)
    fi
    printf 'Missing: %s\n' "${packages[*]}"
    if [[ -t 0 && -t 1 ]]; then
        read -rp "Install with apt-get? [Y/n] " answer
        [[ $answer != [nN]* ]] || die "not without ${packages[*]}"
    else
        asroot=("${asroot[@]/%sudo/sudo -n}")
    fi
    # shellcheck disable=SC2068 # "sudo -n" is two words
    { ${asroot[@]} apt-get update -qq && ${asroot[@]} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq "${packages[@]}"; } </dev/null >/dev/null ||
        die "apt-get can't install ${packages[*]}: see above"
}

# take_privilege SPEC: goes on as root, by sudo, if this user can't make the lab himself.
take_privilege() {
    if ((EUID == 0)) || { [[ -r /dev/net/tun && -w /dev/net/tun ]] && unshare -Urnm true 2>/dev/null; }; then
        return
    fi
    command -v sudo >/dev/null || die "demo: network namespaces need root here, and there is no sudo: run it as root"
    local sudo=(sudo)
    if [[ ! -t 0 ]]; then sudo+=(-n); fi
    printf 'Root is needed for the namespaces (not for anything above):\n'
    exec "${sudo[@]}" env NATBOX="$NATBOX" TRAVERSE="$TRAVERSE" SUPERNODE="$SUPERNODE" CALL="$CALL" "$LAB" demo --nat "$1"
}

# ------------------------------------------------------------------------------------------------------------- show

declare -A ADDRESS_OF=() # host → its addresses, comma between them
BOLD='' DIM='' BLUE='' GREEN='' PLAIN=''

show_demo() {
    local spec=$1 prefix=''
    if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
        BOLD=$'\e[1m' DIM=$'\e[2m' BLUE=$'\e[34m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
    fi
    ID=demo$$
    DEMO_DIR=$(mktemp -d)
    trap 'end_demo' EXIT
    trap 'exit 130' INT TERM

    "$LAB" up one-nat --nat "$spec,--log-packets" --id "$ID" --owner $$ >/dev/null
    LAB_DIR=$STATE_ROOT/$ID
    local name addresses
    while read -r name _ addresses; do ADDRESS_OF[$name]=$addresses; done <"$LAB_DIR/hosts"

    title "A is behind N1, a natbox ($spec). S and P are servers on the internet."
    drawing one-nat | tail -n +2
    serve S 53
    serve P 3478 3479
    one_packet
    two_destinations "$spec"
    programs
    peers
    printf '\n%sThat was it; all of it is being removed.%s To look around yourself:\n' "$BOLD" "$PLAIN"
    if ((EUID == 0)); then prefix='sudo '; fi
    printf '  %snetns-scripts/lab up one-nat --nat %s\n  %snetns-scripts/lab exec A -- bash\n' "$prefix" "$spec" "$prefix"
    if [[ $spec != symmetric* ]]; then printf 'And to see the difference:  netns-scripts/lab demo --nat symmetric\n'; fi
}

end_demo() {
    local status=$?
    trap '' INT TERM # a second Ctrl-C must not stop half way
    trap - EXIT
    "$LAB" down "$ID" || status=1
    if [[ -n ${PEERS_ID:-} ]]; then "$LAB" down "$PEERS_ID" || status=1; fi
    rm -rf "$DEMO_DIR"
    exit "$status"
}

title() { printf '\n%s%s%s\n' "$BOLD$BLUE" "$*" "$PLAIN"; }
say() { printf '%s%s%s\n' "$DIM" "$*" "$PLAIN"; }
in_host() { "$LAB" exec "$ID" "$@"; }

# Addresses as the lecture writes them.
with_names() {
    local host address script=()
    for host in A N1 S P; do
        for address in ${ADDRESS_OF[$host]//,/ }; do
            script+=(-e "s/${address//./\\.}\\b/$host/g")
        done
    done
    sed "${script[@]}"
}

# serve HOST PORT…: somebody who answers there.
serve() {
    local host=$1
    shift
    : >"$DEMO_DIR/$host.log"
    in_host "$host" -- python3 "$SCRIPTS/demo.py" echo "$@" >"$DEMO_DIR/$host.log" 2>&1 </dev/null &
    wait_until 5 grep -q ready "$DEMO_DIR/$host.log" || die "demo: $host can't serve: $(<"$DEMO_DIR/$host.log")"
}

logged_lines() { wc -l <"$LAB_DIR/nats/N1/log"; }
logged_udp() { tail -n "+$(($1 + 1))" "$LAB_DIR/nats/N1/log" | grep -F '[to:' | grep -wF udp | grep -F :4242; }
has_logged() { (($(logged_udp "$1" | wc -l) >= $2)); }

# send ADDRESS:PORT…: from A's port 4242, an answer from each; prints natbox's lines about it. Fails when one is missing,
# with the lines there are.
send() {
    local before count=$# answered=1
    before=$(logged_lines)
    in_host A -- python3 "$SCRIPTS/demo.py" send 4242 "$@" 2>/dev/null || answered=0 count=1
    # natbox prints from a thread of its own, so its lines may come a moment later.
    wait_until 5 has_logged "$before" $((count + answered * count)) ||
        die "demo: natbox didn't log A's packets: $(last_words "$LAB_DIR/nats/N1")"
    logged_udp "$before"
    ((answered))
}

# Everything from the first bracket on.
brackets() { sed 's/^[^[]*//'; }

# blocked LINES: some NATs (corporate) don't let every packet out; that is a demonstration too.
blocked() {
    printf '\n  %s\n\n' "${1//$'\n'/$'\n  '}"
    say "  No answer: this is not a NAT that lets such a packet through."
    return 1
}

one_packet() {
    local lines out in
    title "1. A sends one packet to S, and S answers"
    lines=$(send 198.51.100.30:53 | brackets | with_names) || blocked "$lines" || return 0
    out=$(sed -n 1p <<<"$lines")
    in=$(sed -n 2p <<<"$lines")
    printf '\n          %s%-25s   %s%s\n' "$DIM" "between A and N1" "between N1 and S" "$PLAIN"
    printf '  out     %-25s → %s\n' "${out%% → *}" "${out##* → }"
    printf '  back    %-25s ← %s\n\n' "${in##* → }" "${in%% → *}"
    say "  Out, N1 writes its own address over A's. Back, it finds A again in what it has remembered:"
    printf '\n'
    "$LAB" nat "$ID" N1 show | sed -n '/^PROTO/,/^$/s/^\(.\)/  \1/p'
}

two_destinations() {
    local lines ports external
    title "2. A's same socket talks to two ports of P"
    lines=$(send 198.51.100.10:3478 198.51.100.10:3479 | brackets | with_names) || blocked "$lines" || return 0
    lines=$(grep -F '[to:P' <<<"$lines")
    printf '\n  %s\n\n' "${lines//$'\n'/$'\n  '}"
    mapfile -t ports < <(sed -n 's/.* from:N1:\([0-9]*\)\].*/\1/p' <<<"$lines" | sort -u)
    external=${ports[*]}
    if ((${#ports[@]} == 1)); then
        say "  One external port, $external, for both: whoever is told N1:$external can be reached by it. P can tell"
        say "  another peer that address, and the peer's packets have a chance. Such a NAT can be punched."
    else
        say "  Two external ports, ${external// / and }, one for each destination: what P has seen is of no use to anybody"
        say "  else. This is a symmetric NAT; two peers behind such NATs need prediction, luck or a relay."
    fi
}

programs() {
    title "3. Programs that know nothing of all this"
    printf '\n%s  $ ping -c 3 S%s\n' "$GREEN" "$PLAIN"
    in_host A -- ping -n -c 3 -i 0.2 198.51.100.30 | grep -E 'bytes from|transmitted' | with_names | sed 's/^/  /' ||
        say "  No answer: this NAT doesn't let it through."
    printf '\n%s  $ traceroute S%s\n' "$GREEN" "$PLAIN"
    in_host A -- traceroute -n -w 2 198.51.100.30 | sed 's/^/  /'
    fetch_a_file
}

fetch_a_file() {
    local sent got answer size=$((16 * 1024 * 1024))
    mkdir "$DEMO_DIR/www"
    head -c "$size" /dev/urandom >"$DEMO_DIR/www/file"
    in_host S -- python3 -m http.server --directory "$DEMO_DIR/www" 80 >"$DEMO_DIR/http.log" 2>&1 </dev/null &
    wait_until 5 in_host S -- bash -c ': </dev/tcp/127.0.0.1/80' 2>/dev/null || die "demo: S can't serve HTTP"
    printf '\n%s  $ curl http://S/file%s\n' "$GREEN" "$PLAIN"
    answer=$(in_host A -- curl -sS --fail --max-time 60 -o "$DEMO_DIR/got" -w '%{size_download} bytes, %{speed_download} bytes/s' \
        http://198.51.100.30/file)
    sent=$(sha256sum <"$DEMO_DIR/www/file")
    got=$(sha256sum <"$DEMO_DIR/got")
    printf '  %s\n  at S   sha256 %s\n  at A   sha256 %s\n' "$answer" "${sent%% *}" "${got%% *}"
    [[ $sent == "$got" ]] || die "demo: the file was damaged on its way"
    say "  The same. (S's log says that N1 fetched it: $(grep -F GET "$DEMO_DIR/http.log" | head -n 1 | with_names))"
}
