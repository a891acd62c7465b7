# shellcheck shell=bash
# What labs look like to people (describe, lab list) and to programs (--json).

describe() {
    local name netns addresses
    drawing "$(<"$STATE_ROOT/$1/topology")"
    printf '\nLab %s is up.\n\n' "$1"
    while read -r name netns addresses; do
        printf '  %-10s %-20s %s\n' "$name" "$netns" "${addresses//,/ }"
    done <"$STATE_ROOT/$1/hosts"
    printf '\n'
    for name in "$STATE_ROOT/$1"/nats/*; do
        printf '  %s is %s\n' "${name##*/}" "$(<"$name/spec")"
    done
    printf '\nTry:  netns-scripts/lab exec %s A -- ping 198.51.100.10\nEnd:  netns-scripts/lab down %s\n' "$1" "$1"
}

quote() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# lab_json ID: everything about it, on one line.
lab_json() {
    local id=$1 dir=$STATE_ROOT/$1 name netns addresses nat comma='' pid
    printf '{"id":%s,"topology":%s,"user":%s' "$(quote "$id")" "$(quote "$(<"$dir/topology")")" "$(quote "$(<"$dir/user")")"
    printf ',"state":%s,"stale":%s' "$(quote "$dir")" "$(is_stale "$id" && printf true || printf false)"
    printf ',"owner":%s,"hosts":[' "$(if [[ -e $dir/owner ]]; then cut -d' ' -f1 "$dir/owner"; else printf null; fi)"
    while read -r name netns addresses; do
        addresses=\"${addresses//,/\",\"}\"
        printf '%s{"name":"%s","netns":"%s","addresses":[%s]}' "$comma" "$name" "$netns" "${addresses#\"-\"}"
        comma=,
    done <"$dir/hosts"
    printf '],"nats":['
    comma=''
    for nat in "$dir"/nats/*; do
        [[ -e $nat/spec ]] || continue
        pid=$(running "$nat/pid" || printf null)
        printf '%s{"name":"%s","kind":"%s","spec":%s' "$comma" "${nat##*/}" "$(<"$nat/kind")" "$(quote "$(<"$nat/spec")")"
        printf ',"address":"%s","pid":%s,"control":%s' "$(<"$nat/address")" "$pid" "$(quote "$nat/control")"
        printf ',"log":%s,"natbox":%s}' "$(quote "$nat/log")" "$(quote "$(<"$nat/natbox")")"
        comma=,
    done
    printf ']}\n'
}

cmd_list() {
    local id ids comma='' owner
    mapfile -t ids < <(lab_ids)
    case ${1:-} in
        --json)
            printf '['
            for id in "${ids[@]}"; do
                [[ -e $STATE_ROOT/$id/ready ]] || continue
                printf '%s%s' "$comma" "$(lab_json "$id")"
                comma=,
            done
            printf ']\n'
            ;;
        '')
            ((${#ids[@]})) || printf 'no lab is up\n'
            for id in "${ids[@]}"; do
                owner='until lab down'
                if [[ -e $STATE_ROOT/$id/owner ]]; then owner="for process $(cut -d' ' -f1 "$STATE_ROOT/$id/owner")"; fi
                if [[ ! -e $STATE_ROOT/$id/ready ]]; then owner='not ready'; fi
                if is_stale "$id"; then owner='stale: lab down --stale removes it'; fi
                printf '%-20s %-16s %-40s %s\n' "$id" "$(cat "$STATE_ROOT/$id/topology" 2>/dev/null)" \
                    "$(nats_of "$id")" "$owner"
            done
            ;;
        *) die "list: '$1'? only --json" ;;
    esac
}

nats_of() {
    local nat
    for nat in "$STATE_ROOT/$1"/nats/*; do
        if [[ -e $nat/spec ]]; then printf '%s=%s ' "${nat##*/}" "$(<"$nat/spec")"; fi
    done
}
