# Sourced by ./check, ./demo and ./bench: makes sure that Debian packages are there.

# need PACKAGE... installs what is missing as root; as anyone else names it and ends with status 1.
need() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "${0##*/}: missing Debian packages: ${missing[*]}" >&2
        echo "try: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    local quiet=(-qq -o Dpkg::Use-Pty=0)
    # A list of packages that is too old names files that are gone: refresh it and try once more.
    DEBIAN_FRONTEND=noninteractive apt-get install "${quiet[@]}" -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
        apt-get update "${quiet[@]}" >/dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install "${quiet[@]}" -y --no-install-recommends "${missing[@]}" >/dev/null
    } || {
        echo "${0##*/}: apt-get could not install: ${missing[*]}" >&2
        exit 1
    }
}
