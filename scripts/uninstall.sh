#!/usr/bin/env bash
# Takes away what scripts/install.sh laid; a robot that drives is stopped first.
#   sudo scripts/uninstall.sh [--keep-config]    (keeps /etc/mvla-daemon, the unit's drop-ins, edited udev rules, policies)
set -euo pipefail
home=/opt/mvla-daemon
rules=/etc/udev/rules.d/60-mvla-daemon.rules
unit=/etc/systemd/system/mvla-daemon.service
link=/usr/local/bin/mvla-daemon
catalog=/usr/lib/systemd/catalog/mvla-daemon.catalog
user=mvla
settings=(/etc/mvla-daemon "$unit.d" "$rules" /var/lib/mvla-daemon)

refuse() { # CODE SENTENCE
    echo "uninstall.sh: $2" >&2
    exit "$1"
}

keep=no
for word; do
    case $word in
    --keep-config) keep=yes ;;
    -h | --help)
        sed -n '2,3s/^# \?//p' "$0"
        exit 0
        ;;
    *) refuse 64 "there is no option $word; see --help." ;;
    esac
done
((EUID == 0)) || refuse 77 "this needs root: sudo scripts/uninstall.sh"

removed=()
remove() { # PLACE
    if [ -e "$1" ] || [ -L "$1" ]; then
        rm -rf "$1"
        removed+=("$1")
    fi
}

if [ -e "$unit" ]; then
    if [ -d /run/systemd/system ]; then
        systemctl stop mvla-daemon || refuse 69 "mvla-daemon could not be stopped: see 'systemctl status mvla-daemon'."
    fi
    systemctl --quiet disable mvla-daemon 2>/dev/null || refuse 69 "mvla-daemon could not be disabled: see 'systemctl status mvla-daemon'."
fi
remove "$unit"
if [ "$(readlink "$link" 2>/dev/null)" = "$home/bin/mvla-daemon" ]; then remove "$link"; fi
if [ -e "$catalog" ]; then
    remove "$catalog"
    journalctl --update-catalog || true # it is only what explains log records
fi
had_rules=no
if [ $keep = yes ] && [ -e "$home/share/60-mvla-daemon.rules" ] && cmp -s "$rules" "$home/share/60-mvla-daemon.rules"; then
    remove "$rules" # never edited
    had_rules=yes
fi
# A folder of this name that install.sh did not make is somebody else's.
if [ -e "$home/share/version" ]; then remove "$home"; fi
remove /var/cache/mvla-daemon
remove /run/mvla-daemon
kept=()
for place in "${settings[@]}"; do
    [ -e "$place" ] || continue
    if [ $keep = yes ]; then
        kept+=("$place")
    else
        remove "$place"
        had_rules=yes
    fi
done
if getent passwd $user >/dev/null; then
    # Else the next user to be made could get the number, and these files with it.
    if [ -e /var/lib/mvla-daemon ]; then chown -R root:root /var/lib/mvla-daemon; fi
    userdel $user 2>/dev/null || refuse 69 "user $user could not be removed: end what still runs as that user, and run this again."
    removed+=("user $user")
fi
if getent group $user >/dev/null; then
    groupdel $user 2>/dev/null || refuse 69 "group $user could not be removed: it is somebody's main group; change that, and run this again."
    removed+=("group $user")
fi
if [ -d /run/systemd/system ] && ((${#removed[@]})); then
    systemctl daemon-reload
    systemctl reset-failed mvla-daemon 2>/dev/null || true # it had not failed
    if [ $had_rules = yes ]; then udevadm control --reload 2>/dev/null || true; fi # no udev here
fi

if ((${#removed[@]})); then
    printf 'Removed: %s\n' "${removed[@]}"
else
    echo "There is nothing to remove."
fi
if ((${#kept[@]})); then printf 'Kept: %s\n' "${kept[@]}"; fi
