# shellcheck shell=bash
# The words that a topology is written in, and what turns them into namespaces and wires.
#
#   internet                          an access router in a namespace of its own, and what its customers are plugged into
#   public P ADDRESS…                 a host on the internet
#   gateway N1 ADDRESS                a host on the internet that is a NAT for those behind it (kind: see nat.sh)
#   behind N1 A [N]                   a host behind N1, 10.64.N.2/24 on an uplink of its own
#   lan N1 NET/24 A B…                hosts on one Ethernet behind N1: NET.2, NET.3, … and N1 is NET.1
#   carried N1 N2 NET/24              a NAT whose uplink is another NAT's LAN: N1 is NET.2, N2 is NET.1
#
# The words only write down what is wanted; build_topology makes it in a few batches, because a fork for each link
# would cost more than all the links together. Interfaces are created inside their namespaces, so nothing ever shows
# in the caller's. Inside, every host calls its uplink eth0 (a natbox TUN: tun0).

# The public internet: two nets and a real router (a hop in traceroute, a place for a smaller MTU) between any two hosts.
# As with an internet provider, customers share a net and an address range but not a wire: their ports are isolated, and
# the router answers ARP for all others (RFC 3069). So a packet with a low TTL dies between two gateways.
readonly ROUTER=254
readonly PUBLIC_NETS=(203.0.113 198.51.100)

declare -a HOSTS=()        # in the order of the drawing
declare -a LINKS=()        # `ip` lines that join two namespaces
declare -A ADDRESSES=()    # host → its addresses, the first one first
declare -A CONFIG=()       # host → `ip` lines inside its namespace
declare -A ROUTES=()       # host → 1 where the kernel forwards packets
declare -a NATS=()         # in the order in which they start
declare -A NAT_KIND=()     # NAT → natbox | kernel | kernel-open | pasta | slirp4netns
declare -A NAT_WIRING=()   # NAT → natbox's arguments for its interfaces, one a line; or the one host's namespace and address
declare -A NAT_ADDRESS=()  # NAT → its public address

netns_of() { printf '%s-%s\n' "$ID" "$1"; }

# host NAME ADDRESS…: a namespace with that name.
host() {
    local name=$1
    shift
    HOSTS+=("$name")
    ADDRESSES[$name]=$*
    CONFIG[$name]='link set lo up'$'\n'
}

# config HOST LINE…: lines for `ip` inside the host.
config() {
    local name=$1
    shift
    CONFIG[$name]+=$(printf '%s\n' "$@")$'\n'
}

# wire HOST IFACE HOST IFACE: a veth pair, both ends up.
wire() {
    LINKS+=("link add $2 netns $(netns_of "$1") type veth peer name $4 netns $(netns_of "$3")")
    config "$1" "link set $2 up"
    config "$3" "link set $4 up"
}

# uplink HOST GATEWAY ADDRESS…: the addresses of its eth0 and a default route.
uplink() {
    local name=$1 gateway=$2 address
    shift 2
    for address in "$@"; do
        config "$name" "addr add $address/24 dev eth0"
    done
    config "$name" "route add default via $gateway dev eth0"
}

internet() {
    local net
    host internet
    ROUTES[internet]=1
    config internet 'link add br0 type bridge' 'link set br0 up'
    for net in "${PUBLIC_NETS[@]}"; do
        ADDRESSES[internet]+=" $net.$ROUTER"
        config internet "addr add $net.$ROUTER/24 dev br0"
    done
}

public() {
    local name=$1
    host "$@"
    shift
    wire "$name" eth0 internet "to-$name"
    config internet "link set to-$name master br0" "link set to-$name type bridge_slave isolated on"
    uplink "$name" "${1%.*}.$ROUTER" "$@"
}

gateway() {
    public "$@"
    declare_nat "$1" "$2"
}

# declare_nat NAME ADDRESS: the host NAME is a NAT with this public address on its eth0.
declare_nat() {
    NATS+=("$1")
    # shellcheck disable=SC2034 # nat.sh writes it down
    NAT_ADDRESS[$1]=$2
    NAT_WIRING[$1]=''
    choose_nat "$1"
    case $(family "${NAT_KIND[$1]}") in
        natbox) NAT_WIRING[$1]=$'--outside\neth0\n' ;;
        kernel) ROUTES[$1]=1 ;;
    esac
}

behind() {
    local nat=$1 name=$2 net=10.64.${3:-1} address
    address=$net.2
    if [[ ${NAT_KIND[$nat]} == slirp4netns ]]; then address=$net.100; fi # its own choice; .2 is its gateway
    host "$name" "$address"
    case $(family "${NAT_KIND[$nat]}") in
        natbox) NAT_WIRING[$nat]+="--inside"$'\n'"tun0@$(netns_of "$name")=$address/24"$'\n' ;;
        kernel)
            wire "$name" eth0 "$nat" "to-$name"
            config "$nat" "addr add $net.1/24 dev to-$name"
            uplink "$name" "$net.1" "$address"
            ;;
        sockets)
            [[ -z ${NAT_WIRING[$nat]} ]] || die "$nat: ${NAT_KIND[$nat]} serves one host, and here are several"
            NAT_WIRING[$nat]=$(netns_of "$name")$'\n'$address$'\n'
            return
            ;;
    esac
    ADDRESSES[$nat]+=" $net.1"
}

# serve_lan NAT IFACE ADDRESS: the NAT's own address on a LAN. natbox answers for it itself, on a bare interface.
serve_lan() {
    case $(family "${NAT_KIND[$1]}") in
        natbox) NAT_WIRING[$1]+="--lan"$'\n'"$2=$3/24"$'\n' ;;
        kernel) config "$1" "addr add $3/24 dev $2" ;;
        sockets) die "$1: ${NAT_KIND[$1]} cannot be the gateway of a LAN: its TAP is one host's uplink" ;;
    esac
    ADDRESSES[$1]+=" $3"
}

lan() {
    local nat=$1 net=${2%.0/24} switch=$1-lan name number=2
    shift 2
    host "$switch"
    config "$switch" 'link add br0 type bridge' 'link set br0 up'
    wire "$nat" lan0 "$switch" "to-$nat"
    config "$switch" "link set to-$nat master br0"
    serve_lan "$nat" lan0 "$net.1"
    for name in "$@"; do
        host "$name" "$net.$number"
        wire "$name" eth0 "$switch" "to-$name"
        config "$switch" "link set to-$name master br0"
        uplink "$name" "$net.1" "$net.$number"
        number=$((number + 1))
    done
}

carried() {
    local name=$1 carrier=$2 net=${3%.0/24}
    host "$name" "$net.2"
    wire "$name" eth0 "$carrier" lan0
    serve_lan "$carrier" lan0 "$net.1"
    uplink "$name" "$net.1" "$net.2"
    declare_nat "$name" "$net.2"
}

# Runs inside each namespace; $1 says whether its kernel routes, $2 whether it answers ARP for those who cannot hear each
# other.
#  - A new namespace inherits the machine's settings: what matters is set here, not hoped for.
#  - rp_filter off: a strict check silently drops packets that a NAT legitimately sends out of a shared address.
#  - accept_local off: nobody here has a reason to see its own source address come back; if it does, the NAT is wrong.
#  - icmp_ratelimit off: tests count ICMP errors, traceroute asks for many at once.
#  - send_redirects off: the internet's router has both nets on one bridge and would advise everybody around itself.
#  - no IPv6: the labs are IPv4, and its neighbour discovery would be noise in every capture.
#  - bridge-nf-call off: a machine with br_netfilter would run bridged frames through its own packet filter.
# shellcheck disable=SC2016 # expanded by the inner shell
readonly CONFIGURE='
    set_all() { for file in $2; do if [ -e "$file" ]; then echo "$1" >"$file"; fi; done; }
    cd /proc/sys/net
    echo "$1" >ipv4/ip_forward
    echo "$2" >ipv4/conf/default/proxy_arp_pvlan
    echo 0 >ipv4/icmp_ratelimit
    set_all 1 "ipv6/conf/all/disable_ipv6 ipv6/conf/default/disable_ipv6"
    set_all 0 "ipv4/conf/*/rp_filter ipv4/conf/*/accept_local ipv4/conf/*/send_redirects"
    set_all 0 "bridge/bridge-nf-call-iptables bridge/bridge-nf-call-arptables"
    exec ip -batch -'

# build_topology: makes what the words have written down. The list of namespaces is on disk before the first of them
# exists, so that `lab down` knows them all.
build_topology() {
    local name addresses pvlan
    for name in "${HOSTS[@]}"; do
        addresses=${ADDRESSES[$name]# }
        addresses=${addresses:--} # a switch has none
        printf '%s %s %s\n' "$name" "$(netns_of "$name")" "${addresses// /,}"
    done >"$LAB_DIR/hosts"
    {
        for name in "${HOSTS[@]}"; do printf 'netns add %s\n' "$(netns_of "$name")"; done
        printf '%s\n' "${LINKS[@]}"
    } | ip -batch -
    for name in "${HOSTS[@]}"; do
        pvlan=0
        [[ $name != internet ]] || pvlan=1
        ip netns exec "$(netns_of "$name")" sh -euc "$CONFIGURE" configure "${ROUTES[$name]:-0}" "$pvlan" \
            <<<"${CONFIG[$name]}"
    done
}
