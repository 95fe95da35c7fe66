#!/usr/bin/env bash
# Makes what the v9fs test boots, for each Debian kernel named: DIR/KERNEL/vmlinuz and DIR/KERNEL/initramfs.gz.
#
#     tests/v9fs/build.sh DIR PACKAGE...
#
# PACKAGE is a linux-image metapackage. It is downloaded and unpacked, not installed; what is there already is kept if it
# is the newest still. The initramfs is made anew: busybox, the guest's program, /init, and the modules of 9P over TCP and
# of the network card.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift

die() {
    echo "tests/v9fs/build.sh: $*" >&2
    exit 1
}

[ "$(dpkg --print-architecture)" = amd64 ] || die "the guest is for amd64: qemu-system-x86 and a linux-image of amd64"

# What a kernel has built in, or does not have, is left out.
modules="netfs fscache 9pnet 9pnet_fd 9p virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci
    failover net_failover virtio_net"

# unpack META gives the name of the kernel package that META stands for, unpacked in $dir/NAME/root.
unpack() {
    local name deb root
    name=$(apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    if [ -z "$name" ]; then
        apt-get -qq update >/dev/null 2>&1 || true
        name=$(apt-cache depends "$1" 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    fi
    [ -n "$name" ] || die "missing Debian package: $1 (not in apt's lists; try: apt-get update)"
    root=$dir/$name/root
    if [ ! -e "$root/unpacked" ]; then
        rm -rf "$dir/$name"
        mkdir -p "$root"
        (cd "$dir/$name" && { apt-get -qq -o APT::Sandbox::User=root download "$name" ||
            { apt-get -qq update && apt-get -qq -o APT::Sandbox::User=root download "$name"; }; } >&2) ||
            die "missing Debian package: $name (apt-get download failed)"
        deb=$(echo "$dir/$name"/*.deb)
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --wildcards './boot/vmlinuz-*' \
            '*/fs/9p/*' '*/net/9p/*' '*/fs/netfs/*' '*/fs/fscache/*' '*/drivers/virtio/*' '*/drivers/net/virtio_net*' \
            '*/drivers/net/net_failover*' '*/net/core/failover*' 2>/dev/null || [ -d "$root/boot" ] ||
            die "$deb: it has no kernel"
        rm "$deb"
        touch "$root/unpacked"
    fi
    echo "$name"
}

pack() { # NAME
    local root=$dir/$1/root stage module file
    stage=$(mktemp -d)
    mkdir -p "$stage/bin" "$stage/modules"
    cp /bin/busybox "$stage/bin/busybox"
    cp "$here/init" "$stage/init"
    gcc -O1 -static -o "$stage/bin/guest" "$here/guest.c"
    for module in $modules; do
        file=$(find "$root" -name "$module.ko*" | head -n 1)
        case $file in
        *.xz) xz -dc "$file" >"$stage/modules/$module.ko" ;;
        *.zst) zstd -qdc "$file" >"$stage/modules/$module.ko" ;;
        *.ko) cp "$file" "$stage/modules/" ;;
        esac
    done
    [ -e "$stage/modules/9p.ko" ] || die "$1 has no module 9p"
    (cd "$stage" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$dir/$1/initramfs.gz"
    cp "$root"/boot/vmlinuz-* "$dir/$1/vmlinuz"
    rm -r "$stage"
}

made=
for meta in "$@"; do
    name=$(unpack "$meta")
    pack "$name"
    made="$made $name "
done
# Every kernel that is there is booted: those of before are not.
for old in "$dir"/*/; do
    case $made in *" $(basename "$old") "*) ;; *) rm -r "$old" ;; esac
done
