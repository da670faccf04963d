#!/usr/bin/env bash
# root.sh DIR: unpacks Debian's arm64 Python, its headers and numpy below DIR. Installs nothing, needs no root.
set -euo pipefail
root=$1
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt"/{lists,cache/archives,sources} "$root"
touch "$apt/status"
cp /etc/apt/sources.list.d/debian.sources "$apt/sources" 2>/dev/null || cp /etc/apt/sources.list "$apt/sources/debian.list"
options=(
  -q -oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::Etc::sourcelist=/dev/null
  -oDir::Etc::sourceparts="$apt/sources" -oDir::State::lists="$apt/lists" -oDir::State::status="$apt/status"
  -oDir::Cache="$apt/cache" -oDebug::NoLocking=1 -oAPT::Sandbox::User=
)
apt-get "${options[@]}" update
apt-get "${options[@]}" install -y --no-install-recommends --download-only \
  python3-numpy libpython3-dev libstdc++6 libgomp1 libnuma1
for package in "$apt"/cache/archives/*.deb; do dpkg -x "$package" "$root"; done
# What the packages' scripts would have linked.
ln -sf blas/libblas.so.3 lapack/liblapack.so.3 "$root/usr/lib/aarch64-linux-gnu"
[ -e "$root/lib" ] || ln -s usr/lib "$root/lib"
# torch's cpuinfo reads this file and crashes on what an x86-64 host says in it. These are two Kunpeng 920 cores.
mkdir -p "$root/proc"
for i in 0 1; do
  printf 'processor\t: %d\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics cpuid\n' "$i"
  printf 'CPU implementer\t: 0x48\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd01\nCPU revision\t: 0\n\n'
done >"$root/proc/cpuinfo"
