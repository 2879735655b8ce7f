#!/usr/bin/env bash
# The daemon as a systemd service, from this clone, which is not needed afterwards. Run it again to bring another version.
#   sudo scripts/install.sh [--no-start] [--bench]     (PYTHON=/usr/bin/python3.12 names another interpreter)
# --bench: where there is no configuration yet, the one for a motor controller without camera and policy, wheels up.
# What people edit is kept: the configuration in /etc/mvla-daemon, the udev rules, the unit's drop-ins.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
unset PYTHONPATH PYTHONHOME
export PYTHONNOUSERSITE=1 # what root has in a home folder is not the service's
home=/opt/mvla-daemon
config=/etc/mvla-daemon/config.toml
rules=/etc/udev/rules.d/60-mvla-daemon.rules
unit=/etc/systemd/system/mvla-daemon.service
link=/usr/local/bin/mvla-daemon
catalog=/usr/lib/systemd/catalog/mvla-daemon.catalog
user=mvla
python=${PYTHON:-/usr/bin/python3}

refuse() { # CODE SENTENCE
    echo "install.sh: $2" >&2
    exit "$1"
}

start=yes
shipped=systemd/config.robot.toml
edit="camera, policy, motor.port (ls /dev/serial/by-id), limits"
for word; do
    case $word in
    --no-start) start=no ;;
    --bench)
        shipped=systemd/config.bench.toml
        edit="motor.port (ls /dev/serial/by-id); and wheels off the ground"
        ;;
    -h | --help)
        sed -n '2,5s/^# \?//p' "$0"
        exit 0
        ;;
    *) refuse 64 "there is no option $word; see --help." ;;
    esac
done
((EUID == 0)) || refuse 77 "this needs root: sudo scripts/install.sh"
command -v systemctl >/dev/null || refuse 69 "there is no systemd here: without it, see 'On a robot' in README.md."
[ -x "$python" ] || refuse 69 "there is no $python: install it with 'apt install python3', or name one with PYTHON=."
# Where Python itself is, and whether the locked versions are for it.
about=$("$python" -c 'import platform, sys; print(platform.python_implementation(), *sys.version_info[:2], sys.base_prefix)')
read -r implementation major minor prefix <<<"$about"
if [ "$implementation $major" != "CPython 3" ] || ((minor < 10 || minor > 13)); then
    refuse 69 "$python is $implementation $major.$minor, but CPython 3.10 to 3.13 is needed: name one with PYTHON=."
fi
case $prefix/ in
/home/* | /root/* | /run/user/*) refuse 69 "$python is in a home folder, into which the service may not look: name the system's with PYTHON=/usr/bin/python3." ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    refuse 69 "$python cannot make environments: install its venv with 'apt install python3-venv' (or python3.$minor-venv)."
if [ -e "$link" ] && [ "$(readlink "$link")" != "$home/bin/mvla-daemon" ]; then
    refuse 73 "$link is there already and is not this one's: remove it first."
fi
if [ -e "$home.before" ]; then # an earlier run was killed
    rm -rf "$home"
    mv "$home.before" "$home"
fi
if [ -e "$home" ] && [ ! -e "$home/share/version" ]; then
    refuse 73 "$home is there already and was not made by this script: remove it first."
fi

running=no # the manager; without it (an image that is being made) all is laid down, and starts with the machine
[ -d /run/systemd/system ] && running=yes
active=no
if [ $running = yes ] && systemctl --quiet is-active mvla-daemon; then
    active=yes
    state=$("$link" --config "$config" status --json 2>/dev/null | sed -n 's/.*"state": "\([a-z]*\)".*/\1/p') || state=
    case $state in
    arming | armed | stopping | stopped) refuse 75 "the robot is $state: say 'mvla-daemon --config $config disarm' first." ;;
    esac
fi

scratch=$(mktemp -d)
log=$scratch/log
building=no
restore() { # whatever went wrong while the environment was made: what was there before is there again, and runs
    if [ $building = yes ]; then
        rm -rf "$home"
        if [ -e "$home.before" ]; then mv "$home.before" "$home"; fi
        if [ $active = yes ]; then systemctl --no-block start mvla-daemon; fi
    fi
    rm -rf "$scratch"
}
trap restore EXIT
quietly() {
    if ! "$@" >>"$log" 2>&1; then
        grep -v '^Ignoring ' "$log" | tail -n 20 >&2
        refuse 75 "the set-up has failed, the lines above say why; mend that and run it again."
    fi
}

# --- the environment ---

jetpack=no
[ -e /etc/nv_tegra_release ] && jetpack=yes
version=$(
    echo "$about $jetpack"
    find mvla_daemon pyproject.toml requirements.robot.lock scripts/setup_jetson.sh -name __pycache__ -prune -o -type f \
        -print0 | sort -z | xargs -0 sha256sum
)
version=$(sha256sum <<<"$version" | cut -d' ' -f1)
if [ "$(cat "$home/share/version" 2>/dev/null)" = "$version" ] && "$home/bin/mvla-daemon" --version >/dev/null 2>&1; then
    echo "The environment in $home is up to date."
else
    echo "Setting up $home with $python (about a minute, longer where pycuda is compiled)"
    # A copy, since building leaves folders behind that its owner could not remove.
    source=$scratch/source
    mkdir -p "$source/scripts"
    cp -r mvla_daemon pyproject.toml README.md LICENSE requirements.robot.lock "$source"
    cp scripts/setup_jetson.sh "$source/scripts"
    find "$source" -name __pycache__ -prune -exec rm -rf {} +
    if [ $active = yes ]; then systemctl stop mvla-daemon; fi # what it has not loaded yet must not be another version's
    building=yes
    if [ -e "$home" ]; then mv "$home" "$home.before"; fi
    if [ $jetpack = yes ]; then
        quietly env PYTHON="$python" "$source/scripts/setup_jetson.sh" "$home"
    else
        pip() { quietly "$home/bin/python" -m pip --disable-pip-version-check --no-input --no-cache-dir "$@"; }
        quietly "$python" -m venv "$home"
        pip install --require-hashes --only-binary :all: --requirement requirements.robot.lock
        pip install --no-deps --no-build-isolation "$source"
        pip check
    fi
    quietly "$home/bin/python" -c 'import cv2'
    quietly "$home/bin/python" -m compileall -q "$home/lib"
    mkdir -p "$home/share"
    echo "$version" >"$home/share/version"
    building=no
    rm -rf "$home.before"
fi
install -m 0644 systemd/config.robot.toml systemd/config.bench.toml systemd/60-mvla-daemon.rules "$home/share"
install -m 0755 scripts/uninstall.sh "$home/share"

# --- the user ---

if ! getent passwd $user >/dev/null; then
    quietly useradd --system --user-group --home-dir /var/lib/mvla-daemon --no-create-home --shell /usr/sbin/nologin $user
    if [ -e /var/lib/mvla-daemon ]; then chown -R $user:$user /var/lib/mvla-daemon; fi # kept by uninstall.sh
fi
for group in dialout video render; do # render is there where a GPU may be
    if getent group $group >/dev/null; then quietly usermod --append --groups $group $user; fi
done
install -d -m 0750 -o $user -g $user /var/lib/mvla-daemon /var/cache/mvla-daemon

# --- the files of the system ---

lay_unless_edited() { # FILE PLACE: what was edited stays, and is told
    if [ ! -e "$2" ]; then
        install -D -m 0644 "$1" "$2"
    elif ! cmp -s "$1" "$2"; then
        echo "$2 was kept; what comes with this version is $home/share/$(basename "$1")."
    fi
}
lay_unless_edited $shipped "$config"
edited=yes
for own in systemd/config.robot.toml systemd/config.bench.toml; do
    if cmp -s $own "$config"; then edited=no; fi
done
lay_unless_edited systemd/60-mvla-daemon.rules "$rules"
install -D -m 0644 systemd/mvla-daemon.service "$unit"
ln -sfn "$home/bin/mvla-daemon" "$link"
if [ -e systemd/mvla-daemon.catalog ]; then
    install -D -m 0644 systemd/mvla-daemon.catalog "$catalog"
    quietly journalctl --update-catalog
fi

quietly systemctl enable mvla-daemon
if [ $running = yes ]; then
    quietly systemctl daemon-reload
    if udevadm control --reload 2>/dev/null; then
        udevadm trigger --action=add --subsystem-match=tty --subsystem-match=usb-serial || true # at the next boot, then
    fi
fi

# --- what comes next ---

ask="mvla-daemon --config $config"
echo
"$link" --version
if [ $edited = no ] || [ $start = no ] || [ $running = no ]; then
    echo "It is enabled, and starts disarmed with the machine. Next:"
    echo "  sudoedit $config               # $edit"
    echo "  sudo -u $user $ask check       # moves nothing"
    echo "  sudo systemctl restart mvla-daemon                     # starts disarmed"
else
    systemctl restart mvla-daemon ||
        refuse 69 "it is installed, but did not start: 'journalctl -u mvla-daemon -n 20' says why."
    echo "It runs, disarmed unless safety.arm is \"auto\". Next:"
fi
echo "  sudo usermod -aG $user \$USER                             # once, and log in anew: who may stop and arm"
echo "  $ask arm"
