# From the first root of the guest, where this runs, to the Debian in which systemd is process 1. Its archive is the disk.
set -e
mount -t tmpfs -o size=600m,mode=0755 root /mnt
tar -x -C /mnt -f /dev/vda
cp -a --parents /init /suites /usr/bin/dewar /usr/bin/dewar-full /usr/bin/dewar-runner /mnt

cd /mnt
echo 'tester:x:1000:1000::/home/tester:/bin/bash' >> etc/passwd
echo 'tester:x:1000:' >> etc/group
echo 'tester:!:19000::::::' >> etc/shadow
install -d -o 1000 -g 1000 home/tester
# Else systemd takes this for the first boot and enables whatever it finds.
echo 0123456789abcdef0123456789abcdef > etc/machine-id

units=etc/systemd/system
cat > $units/tests.service <<'UNIT'
[Unit]
Description=Runs the tests of dewar
After=dbus.socket systemd-logind.service
[Service]
ExecStart=/init --agent
StandardOutput=journal+console
StandardError=journal+console
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p $units/multi-user.target.wants $units/user@.service.d
ln -s ../tests.service $units/multi-user.target.wants/
ln -sf /lib/systemd/system/multi-user.target $units/default.target
# What docs/hosts.md says that users need for all of the limits.
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' > $units/user@.service.d/delegate.conf
for unit in getty.target serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer; do
    ln -sf /dev/null $units/$unit
done
