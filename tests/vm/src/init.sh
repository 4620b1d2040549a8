#!/bin/busybox sh
# A guest's first process: makes a small Linux of the initramfs, has the stories told, and switches the guest off.
export PATH=/bin HOME=/root TCPTIDE=/bin/tcptide
/bin/busybox mount -t proc proc /proc
# Those of the host's programs that were brought along stay.
/bin/busybox --install -s /bin 2>/dev/null

mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir /run/netns
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security

modprobe -a veth tun tcp_diag
ip link set lo up
ulimit -n 65536
ulimit -l unlimited

# Until the kernel has enough noise, each random number costs it hundreds of times as much: there would be a connection,
# with its port and its first sequence number, for a third more. Waits for it.
head -c 1 /dev/random >/dev/null

# Else the line would add carriage returns, and echo.
stty -F /dev/ttyS1 raw -echo
vm guest
poweroff -f
