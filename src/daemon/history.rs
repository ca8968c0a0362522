//! What a task and each of its processes used of late. Pure.
//!
//! A [`History`] has a ring for the task as a whole, and one for each process of which a run was sampled. A ring holds the last so
//! many [`Point`]s, and gives them back as they are, nearest to a time ([`History::get`]), or as a series with rates
//! ([`History::series`]).
//!
//! **Size.** A point is 24 numbers, most of which do not change from one to the next. What is kept is a mask of those that did, and how much, as
//! varints: some 11 bytes for a task that does nothing, some 50 for one that works in every way, [`Ring::MOST`] at the most. Points come in
//! blocks of [`BLOCK`], each of which can be read without the others; the oldest block is dropped once the rest is
//! enough. So a ring takes what its points take, and never more than for its capacity and a block besides: an hour of every ten
//! seconds is about 4 kB idle and 18 kB busy. All memory is bounded by the tasks that live or ended of late, times the
//! processes of each that were run, times that.
//!
//! **Absent is not zero.** A number that a host does not tell is absent in the point, and in all that follows from it. A rate is of two
//! points of the same cgroup, and absent where a counter has gone back: it is never negative (attack 50).

use std::collections::VecDeque;
use std::mem;
use std::ops::RangeInclusive;

use pbjson_types::Duration;

use crate::proto::{
    CpuUsage, DiskUsage, IoUsage, MemoryEvents, MemoryUsage, PidsUsage, Pressure, PressureUsage,
    ProcessUsage, Sample, Stall, TaskUsage, Timestamp, Usage, UsagePeak, UsagePoint, UsageRates,
};

/// Points of a block.
const BLOCK: usize = 64;
/// Numbers of a point.
const NUMBERS: usize = 24;
/// A point as numbers. Of those that may be absent 0 is absent, and any other is one more than it says.
type Numbers = [u64; NUMBERS];

/// One reading of a cgroup: as much of it as is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Point {
    /// CLOCK_BOOTTIME when it was read, nanoseconds.
    pub(crate) boot_nanos: u64,
    /// Wall clock when it was read, nanoseconds since 1970.
    pub(crate) unix_nanos: i64,
    /// Which cgroup it is. `None`: there was none, as of a process between two runs; nothing else is there then.
    pub(crate) cgroup_id: Option<u64>,
    /// Of a task: its state ([`crate::proto::TaskState`]). Of a process: number of the run.
    pub(crate) of: u32,
    /// CPU time since the cgroup was made, microseconds.
    pub(crate) cpu_usec: Option<u64>,
    /// Of it in user mode.
    pub(crate) user_usec: Option<u64>,
    /// Of it in kernel mode.
    pub(crate) system_usec: Option<u64>,
    /// Time spent waiting because of `cpu.max`, microseconds.
    pub(crate) throttled_usec: Option<u64>,
    /// Memory charged, bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// Memory that would be missed, bytes.
    pub(crate) working_set_bytes: Option<u64>,
    /// Private memory of processes, bytes.
    pub(crate) anon_bytes: Option<u64>,
    /// Most memory at one time since the cgroup was made, bytes.
    pub(crate) memory_peak_bytes: Option<u64>,
    /// Swap space in use, bytes.
    pub(crate) swap_bytes: Option<u64>,
    /// Bytes read from block devices since the cgroup was made.
    pub(crate) read_bytes: Option<u64>,
    /// Bytes written to them.
    pub(crate) write_bytes: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: Option<u64>,
    /// Processes that the OOM killer killed since the cgroup was made.
    pub(crate) oom_kills: Option<u64>,
    /// Time that was lost for want of CPU, memory and I/O: of each how much `some` and `full` lost of the last 10 s, in
    /// hundredths of a percent, which is as fine as the kernel tells it.
    pub(crate) stalls: [Option<u64>; 6],
    /// Of a task: bytes that its sandbox takes, as it was measured last.
    pub(crate) disk_bytes: Option<u64>,
}

impl Point {
    /// What of `sample` is kept.
    pub(crate) fn of(sample: &Sample, of: u32) -> Self {
        let usage = Usage::from(sample);
        let micros = |time: Option<Duration>| {
            let time = std::time::Duration::try_from(time?).ok()?;
            u64::try_from(time.as_micros()).ok()
        };
        let memory = sample.memory.unwrap_or_default();
        let pressure = sample.pressure.unwrap_or_default();
        let stalls = [pressure.cpu, pressure.memory, pressure.io].map(|of| {
            let of = of.unwrap_or_default();
            [of.some, of.full].map(|stall| hundredths(stall?.avg10?))
        });
        let [[a, b], [c, d], [e, f]] = stalls;
        Self {
            boot_nanos: sample.boot_nanos,
            unix_nanos: sample.time.unwrap_or_default().unix_nanos(),
            cgroup_id: Some(sample.cgroup_id),
            of,
            cpu_usec: micros(usage.cpu_time),
            user_usec: micros(usage.cpu_user_time),
            system_usec: micros(usage.cpu_system_time),
            throttled_usec: micros(usage.cpu_throttled_time),
            memory_bytes: memory.current_bytes,
            working_set_bytes: memory.working_set_bytes,
            anon_bytes: memory.anon_bytes,
            memory_peak_bytes: memory.peak_bytes,
            swap_bytes: memory.swap_bytes,
            read_bytes: usage.io_read_bytes,
            write_bytes: usage.io_write_bytes,
            pids: sample.pids.and_then(|pids| pids.current),
            oom_kills: usage.oom_kills,
            stalls: [a, b, c, d, e, f],
            disk_bytes: None,
        }
    }

    /// When it was read.
    pub(crate) fn time(&self) -> Timestamp {
        Timestamp::from_unix_nanos(self.unix_nanos)
    }

    /// The sample that it is of, with what is kept of it; `None` where there was no cgroup.
    pub(crate) fn sample(&self) -> Option<Sample> {
        let time =
            |usec: Option<u64>| usec.map(std::time::Duration::from_micros).map(Duration::from);
        let stall = |hundredths: Option<u64>| {
            Some(Stall { avg10: Some(hundredths? as f64 / 100.0), total: None })
        };
        let pressure = |of: usize| {
            let told = Pressure { some: stall(self.stalls[of]), full: stall(self.stalls[of + 1]) };
            (told != Pressure::default()).then_some(told)
        };
        let events = self
            .oom_kills
            .map(|oom_kill| MemoryEvents { oom_kill: Some(oom_kill), ..MemoryEvents::default() });
        Some(Sample {
            time: Some(self.time()),
            boot_nanos: self.boot_nanos,
            cgroup_id: self.cgroup_id?,
            is_new_cgroup: false,
            cpu: there(CpuUsage {
                time: time(self.cpu_usec),
                user_time: time(self.user_usec),
                system_time: time(self.system_usec),
                throttled_time: time(self.throttled_usec),
                ..CpuUsage::default()
            }),
            memory: there(MemoryUsage {
                current_bytes: self.memory_bytes,
                working_set_bytes: self.working_set_bytes,
                anon_bytes: self.anon_bytes,
                peak_bytes: self.memory_peak_bytes,
                swap_bytes: self.swap_bytes,
                events,
                ..MemoryUsage::default()
            }),
            io: there(IoUsage {
                read_bytes: self.read_bytes,
                write_bytes: self.write_bytes,
                ..IoUsage::default()
            }),
            pids: there(PidsUsage { current: self.pids, ..PidsUsage::default() }),
            pressure: there(PressureUsage {
                cpu: pressure(0),
                memory: pressure(2),
                io: pressure(4),
            }),
        })
    }

    /// A point at which there is nothing.
    fn nothing(time: &Self) -> Self {
        Self { boot_nanos: time.boot_nanos, unix_nanos: time.unix_nanos, ..Self::default() }
    }

    fn numbers(&self) -> Numbers {
        let some = |number: Option<u64>| number.map_or(0, |number| number.saturating_add(1));
        let [a, b, c, d, e, f] = self.stalls.map(some);
        [
            self.boot_nanos,
            // Changes only where the wall clock was set.
            (self.unix_nanos as u64).wrapping_sub(self.boot_nanos),
            some(self.cgroup_id),
            self.of.into(),
            some(self.cpu_usec),
            some(self.user_usec),
            some(self.system_usec),
            some(self.throttled_usec),
            some(self.memory_bytes),
            some(self.working_set_bytes),
            some(self.anon_bytes),
            some(self.memory_peak_bytes),
            some(self.swap_bytes),
            some(self.read_bytes),
            some(self.write_bytes),
            some(self.pids),
            some(self.oom_kills),
            some(self.disk_bytes),
            a,
            b,
            c,
            d,
            e,
            f,
        ]
    }

    fn from_numbers(numbers: &Numbers) -> Self {
        let &[
            boot,
            wall,
            cgroup,
            of,
            cpu,
            user,
            system,
            throttled,
            memory,
            working_set,
            anon,
            peak,
            swap,
            read,
            write,
            pids,
            oom_kills,
            disk,
            ref stalls @ ..,
        ] = numbers;
        let some = |number: u64| number.checked_sub(1);
        Self {
            boot_nanos: boot,
            unix_nanos: wall.wrapping_add(boot) as i64,
            cgroup_id: some(cgroup),
            of: of as u32,
            cpu_usec: some(cpu),
            user_usec: some(user),
            system_usec: some(system),
            throttled_usec: some(throttled),
            memory_bytes: some(memory),
            working_set_bytes: some(working_set),
            anon_bytes: some(anon),
            memory_peak_bytes: some(peak),
            swap_bytes: some(swap),
            read_bytes: some(read),
            write_bytes: some(write),
            pids: some(pids),
            oom_kills: some(oom_kills),
            stalls: stalls.map(some),
            disk_bytes: some(disk),
        }
    }

    /// Takes over whatever `other` has more of, of what goes up and down.
    fn raise(&mut self, other: &Self) {
        let more = |mine: &mut Option<u64>, other| *mine = (*mine).max(other);
        more(&mut self.memory_bytes, other.memory_bytes);
        more(&mut self.working_set_bytes, other.working_set_bytes);
        more(&mut self.anon_bytes, other.anon_bytes);
        more(&mut self.swap_bytes, other.swap_bytes);
        more(&mut self.pids, other.pids);
        more(&mut self.disk_bytes, other.disk_bytes);
        for (mine, other) in self.stalls.iter_mut().zip(other.stalls) {
            more(mine, other);
        }
    }
}

fn hundredths(percent: f64) -> Option<u64> {
    (0.0..=100.0).contains(&percent).then(|| (percent * 100.0).round() as u64)
}

/// `None` where all of it is absent.
fn there<T: Default + PartialEq>(told: T) -> Option<T> {
    (told != T::default()).then_some(told)
}

/// The last points of a cgroup, or of the cgroups that came one after the other.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Points that are kept at least, once there are as many.
    capacity: usize,
    blocks: VecDeque<Block>,
    /// Points in all blocks.
    length: usize,
    /// The newest.
    last: Numbers,
}

/// Points, each as what differs from the one before; of the first from nothing.
#[derive(Debug, Default)]
struct Block {
    points: usize,
    bytes: Vec<u8>,
}

impl Ring {
    /// Most bytes that a point can take: a mask, and ten for each number.
    #[cfg(test)]
    const MOST: usize = 3 + 10 * NUMBERS;

    fn new(capacity: usize) -> Self {
        Self { capacity, blocks: VecDeque::new(), length: 0, last: [0; NUMBERS] }
    }

    /// The newest point.
    pub(crate) fn last(&self) -> Option<Point> {
        (self.length > 0).then(|| Point::from_numbers(&self.last))
    }

    /// Points that are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let blocks = self.blocks.iter().map(|block| block.bytes.capacity()).sum::<usize>();
        mem::size_of::<Self>() + self.blocks.capacity() * mem::size_of::<Block>() + blocks
    }

    /// Takes in a point; refuses one that is older than the last.
    fn add(&mut self, point: &Point) -> bool {
        if self.last().is_some_and(|last| point.boot_nanos < last.boot_nanos) {
            return false;
        }
        if self.blocks.back().is_none_or(|block| block.points == BLOCK) {
            if let Some(full) = self.blocks.back_mut() {
                full.bytes.shrink_to_fit();
            }
            self.blocks.push_back(Block::default());
            self.last = [0; NUMBERS];
        }
        let numbers = point.numbers();
        if let Some(block) = self.blocks.back_mut() {
            encode(&mut block.bytes, &self.last, &numbers);
            block.points += 1;
        }
        self.last = numbers;
        self.length += 1;
        while let Some(oldest) = self.blocks.front()
            && self.length - oldest.points >= self.capacity
        {
            self.length -= oldest.points;
            self.blocks.pop_front();
        }
        true
    }

    /// All points that are kept; the oldest comes first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Point> {
        self.blocks.iter().flat_map(Block::iter)
    }

    /// The point nearest to a time, the later of two; with it when the next one was read, on CLOCK_BOOTTIME.
    fn nearest(&self, unix_nanos: i64) -> Option<(Point, Option<u64>)> {
        let mut nearest: Option<(Point, Option<u64>)> = None;
        let distance = |point: &Point| point.unix_nanos.abs_diff(unix_nanos);
        let mut is_last = false;
        // The wall clock may have been set: the times need not be in order.
        for point in self.iter() {
            if nearest.is_none_or(|(nearest, _)| distance(&point) <= distance(&nearest)) {
                nearest = Some((point, None));
                is_last = true;
            } else if mem::take(&mut is_last) {
                nearest = nearest.map(|(nearest, _)| (nearest, Some(point.boot_nanos)));
            }
        }
        nearest
    }
}

impl Block {
    fn iter(&self) -> impl Iterator<Item = Point> {
        let mut rest = self.bytes.as_slice();
        let mut numbers = [0; NUMBERS];
        (0..self.points).map_while(move |_| {
            decode(&mut rest, &mut numbers)?;
            Some(Point::from_numbers(&numbers))
        })
    }
}

/// Appends what differs: a mask of three bytes, and a varint for each number that is not the same.
fn encode(to: &mut Vec<u8>, before: &Numbers, now: &Numbers) {
    let changed = |at: usize| before[at] != now[at];
    let mask = (0..NUMBERS).filter(|&at| changed(at)).fold(0_u32, |mask, at| mask | 1 << at);
    to.extend_from_slice(&mask.to_le_bytes()[..3]);
    for at in (0..NUMBERS).filter(|&at| changed(at)) {
        let difference = now[at].wrapping_sub(before[at]) as i64;
        // Small numbers have few bytes, whatever their sign: twice the number, its sign in the lowest bit.
        let mut left = ((difference << 1) ^ (difference >> 63)) as u64;
        while left >= 0x80 {
            to.push(left as u8 | 0x80);
            left >>= 7;
        }
        to.push(left as u8);
    }
}

/// Takes one point off `rest`, and makes of the one before the next.
fn decode(rest: &mut &[u8], numbers: &mut Numbers) -> Option<()> {
    let (&[a, b, c], after) = rest.split_first_chunk()?;
    *rest = after;
    let mask = u32::from_le_bytes([a, b, c, 0]);
    for (at, number) in numbers.iter_mut().enumerate() {
        if mask & 1 << at != 0 {
            let zigzag = varint(rest)?;
            let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            *number = number.wrapping_add(difference as u64);
        }
    }
    Some(())
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    Some(number)
}

/// A point, and what happened since the one before: per second, on average.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rated {
    /// The point. Where it stands for several: the last of them, and of what goes up and down the most of them all.
    pub(crate) point: Point,
    /// The rates.
    pub(crate) rates: Rates,
}

/// What happened per second between points of the same cgroup; absent where there are no two, or a counter has gone back.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rates {
    /// CPUs used.
    pub(crate) cpus: Option<f64>,
    /// CPUs that `cpu.max` kept it from using.
    pub(crate) throttled: Option<f64>,
    /// Bytes read per second.
    pub(crate) read_bytes: Option<f64>,
    /// Bytes written per second.
    pub(crate) write_bytes: Option<f64>,
}

/// What is told of a stretch of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Series {
    /// The points; the oldest comes first.
    pub(crate) points: Vec<Rated>,
    /// Of all points in that stretch, whether or not they are told one by one: the most of each number that goes up and down.
    pub(crate) peak: Point,
    /// The highest rates between any two of them that come one after the other.
    pub(crate) peak_rates: Rates,
}

impl Rated {
    /// As it is told; `of_process`: of a process, which has runs.
    pub(crate) fn to_proto(self, of_process: bool) -> UsagePoint {
        let Self { point, rates } = self;
        UsagePoint {
            time: Some(point.time()),
            run: point.cgroup_id.filter(|_| of_process).map(|_| point.of),
            sample: point.sample(),
            rates: there(rates.to_proto()),
            disk_bytes: point.disk_bytes,
        }
    }
}

impl Rates {
    fn to_proto(self) -> UsageRates {
        UsageRates {
            cpus: self.cpus,
            throttled_cpus: self.throttled,
            read_bytes_per_second: self.read_bytes,
            write_bytes_per_second: self.write_bytes,
        }
    }
}

impl Series {
    /// The peaks, as they are told; `None` if there are none.
    pub(crate) fn peak_to_proto(&self) -> Option<UsagePeak> {
        let most = Point { cgroup_id: Some(0), ..self.peak }.sample()?;
        there(UsagePeak {
            memory: most.memory,
            pids: most.pids,
            pressure: most.pressure,
            rates: there(self.peak_rates.to_proto()),
            disk_bytes: self.peak.disk_bytes,
        })
    }
}

/// A number that grows, and what was counted while it did: the sum of many steps.
#[derive(Debug, Clone, Copy, Default)]
struct Growth {
    by: u64,
    nanos: u64,
}

impl Growth {
    /// Adds a step, if it is one.
    fn add(&mut self, before: Option<u64>, now: Option<u64>, nanos: u64) {
        if let (Some(before), Some(now)) = (before, now)
            && let Some(by) = now.checked_sub(before)
        {
            self.by = self.by.saturating_add(by);
            self.nanos += nanos;
        }
    }

    fn per_second(self) -> Option<f64> {
        (self.nanos > 0).then(|| self.by as f64 / (self.nanos as f64 / 1e9))
    }
}

/// All that grows.
#[derive(Debug, Clone, Copy, Default)]
struct Growths {
    cpu: Growth,
    throttled: Growth,
    read: Growth,
    write: Growth,
}

impl Growths {
    fn add(&mut self, before: &Point, now: &Point) {
        if before.cgroup_id != now.cgroup_id {
            return;
        }
        let nanos = now.boot_nanos.saturating_sub(before.boot_nanos);
        self.cpu.add(before.cpu_usec, now.cpu_usec, nanos);
        self.throttled.add(before.throttled_usec, now.throttled_usec, nanos);
        self.read.add(before.read_bytes, now.read_bytes, nanos);
        self.write.add(before.write_bytes, now.write_bytes, nanos);
    }

    fn rates(self) -> Rates {
        let cpus = |of: Growth| of.per_second().map(|micros| micros / 1e6);
        Rates {
            cpus: cpus(self.cpu),
            throttled: cpus(self.throttled),
            read_bytes: self.read.per_second(),
            write_bytes: self.write.per_second(),
        }
    }
}

impl Rates {
    /// What happened between two points.
    pub(crate) fn between(before: &Point, now: &Point) -> Self {
        let mut growths = Growths::default();
        growths.add(before, now);
        growths.rates()
    }

    fn raise(&mut self, other: &Self) {
        let more = |mine: &mut Option<f64>, other: Option<f64>| {
            if other > *mine {
                *mine = other;
            }
        };
        more(&mut self.cpus, other.cpus);
        more(&mut self.throttled, other.throttled);
        more(&mut self.read_bytes, other.read_bytes);
        more(&mut self.write_bytes, other.write_bytes);
    }
}

impl Ring {
    /// The points of `times`, wall clock in nanoseconds since 1970, as `most` or fewer.
    fn series(&self, times: &RangeInclusive<i64>, most: usize) -> Series {
        let mut before = None;
        let mut steps = Vec::new();
        for point in self.iter() {
            if times.contains(&point.unix_nanos) {
                steps.push((before, point));
            }
            before = Some(point);
        }
        let mut series = Series::default();
        // As even as can be: each point that is told stands for as many, or for one more.
        let most = most.clamp(1, steps.len().max(1));
        let mut rest = steps.as_slice();
        for left in (1..=most).rev() {
            let (group, after) = rest.split_at(rest.len() / left);
            rest = after;
            let there = group.iter().rfind(|(_, point)| point.cgroup_id.is_some());
            let Some(&(_, mut told)) = there.or(group.last()) else { continue };
            let mut growths = Growths::default();
            for (before, point) in group {
                if let Some(before) = before {
                    growths.add(before, point);
                    series.peak_rates.raise(&Rates::between(before, point));
                }
                told.raise(point);
            }
            series.peak.raise(&told);
            series.points.push(Rated { point: told, rates: growths.rates() });
        }
        series
    }
}

/// What a task and its processes used of late.
#[derive(Debug)]
pub(crate) struct History {
    capacity: usize,
    task: Ring,
    /// In declared order, once all were read.
    processes: Vec<Process>,
    /// What the sandbox takes, as it was measured last.
    disk: Option<DiskUsage>,
}

/// A process, with what is kept of its runs, once one was sampled.
#[derive(Debug)]
struct Process {
    name: String,
    ring: Option<Box<Ring>>,
}

impl Process {
    fn add(&mut self, point: &Point, capacity: usize) {
        match &mut self.ring {
            // That its run is over is kept once, and that it has not begun not at all.
            Some(ring)
                if point.cgroup_id.or(ring.last().and_then(|last| last.cgroup_id)).is_some() =>
            {
                ring.add(point);
            }
            None if point.cgroup_id.is_some() => {
                self.ring.insert(Box::new(Ring::new(capacity))).add(point);
            }
            _ => {}
        }
    }

    /// As it was read last before `boot_nanos`.
    fn before(&self, boot_nanos: Option<u64>) -> ProcessUsage {
        let is_before = |point: &Point| boot_nanos.is_none_or(|next| point.boot_nanos < next);
        let ring = self.ring.as_deref();
        let last = ring.and_then(|ring| ring.iter().take_while(is_before).last());
        let live = last.filter(|point| point.cgroup_id.is_some());
        ProcessUsage {
            name: self.name.clone(),
            run: live.map(|point| point.of),
            sample: live.zip(ring).and_then(|(point, ring)| rated(ring, &point)),
            recorded: None,
        }
    }
}

impl History {
    /// Keeps `capacity` points of the task, and as many of each process.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, task: Ring::new(capacity), processes: Vec::new(), disk: None }
    }

    /// Takes in a reading; says whether it did, which it does not where the reading is older than the last, or of no cgroup. One that
    /// was taken in already, as who shares readings may come with, is not taken in twice.
    ///
    /// A reading without processes is one of the task alone: it says nothing of its processes.
    pub(crate) fn add(&mut self, usage: &TaskUsage) -> bool {
        let Some(sample) = &usage.sample else { return false };
        let disk_bytes = self.disk.as_ref().map(|disk| disk.bytes);
        let point = Point { disk_bytes, ..Point::of(sample, usage.state as u32) };
        if self.task.last().is_some_and(|last| last.boot_nanos == point.boot_nanos) {
            return true;
        }
        if !self.task.add(&point) {
            return false;
        }
        if self.processes.is_empty() {
            let process = |of: &ProcessUsage| Process { name: of.name.clone(), ring: None };
            self.processes = usage.processes.iter().map(process).collect();
        }
        // A task has the same processes for ever, and they are always told in the same order.
        for (process, told) in self.processes.iter_mut().zip(&usage.processes) {
            let point = match &told.sample {
                Some(sample) => Point::of(sample, told.run.unwrap_or_default()),
                None => Point::nothing(&point),
            };
            process.add(&point, self.capacity);
        }
        true
    }

    /// The sandbox was measured.
    pub(crate) fn measured(&mut self, disk: DiskUsage) {
        self.disk = Some(disk);
    }

    /// What the sandbox takes, as it was measured last.
    pub(crate) fn disk(&self) -> Option<DiskUsage> {
        self.disk.clone()
    }

    /// Tells in a reading that was just made how many CPUs were used since the last that is kept.
    pub(crate) fn rate(&self, usage: &mut TaskUsage) {
        if let Some(sample) = &mut usage.sample {
            rate(&self.task, sample);
        }
        for (process, told) in self.processes.iter().zip(&mut usage.processes) {
            if let (Some(ring), Some(sample)) = (&process.ring, &mut told.sample) {
                rate(ring, sample);
            }
        }
    }

    /// Whether the task has a process of that name, as far as is known: its processes may not have been read yet.
    pub(crate) fn may_have(&self, process: &str) -> bool {
        self.processes.is_empty() || self.processes.iter().any(|of| of.name == process)
    }

    /// The task as it was read last.
    pub(crate) fn last(&self) -> Option<Point> {
        self.task.last()
    }

    /// The reading that was made nearest to a time; before the first that is kept the first, after the last the last; `None` if there is
    /// none. With `by_process` each process, in declared order, as it was then.
    pub(crate) fn get(&self, time: Timestamp, by_process: bool) -> Option<TaskUsage> {
        let (point, next) = self.task.nearest(time.unix_nanos())?;
        let processes = self.processes.iter().filter(|_| by_process);
        let disk = |bytes| DiskUsage { bytes, ..DiskUsage::default() };
        Some(TaskUsage {
            disk: point.disk_bytes.map(disk),
            state: point.of as i32,
            time: Some(point.time()),
            sample: rated(&self.task, &point),
            processes: processes.map(|process| process.before(next)).collect(),
            ..TaskUsage::default()
        })
    }

    /// The points of a stretch of time, wall clock in nanoseconds since 1970, as `most` or fewer, of the task or of a process. A process of
    /// which no run was sampled has none.
    pub(crate) fn series(
        &self,
        process: Option<&str>,
        times: &RangeInclusive<i64>,
        most: usize,
    ) -> Series {
        let ring = match process {
            None => Some(&self.task),
            Some(name) => {
                let process = self.processes.iter().find(|process| process.name == name);
                process.and_then(|process| process.ring.as_deref())
            }
        };
        ring.map(|ring| ring.series(times, most)).unwrap_or_default()
    }
}

/// The sample of a point of `ring`, with the rate since the point before.
fn rated(ring: &Ring, point: &Point) -> Option<Sample> {
    let mut sample = point.sample()?;
    rate(ring, &mut sample);
    Some(sample)
}

/// Tells in a sample the rate since the last point of `ring` before it.
fn rate(ring: &Ring, sample: &mut Sample) {
    let now = Point::of(sample, 0);
    let before = ring.iter().take_while(|before| before.boot_nanos < now.boot_nanos).last();
    if let (Some(before), Some(cpu)) = (before, &mut sample.cpu) {
        cpu.rate = Rates::between(&before, &now).cpus;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cgroup::{Extent, content};
    use crate::proto::TaskState;

    const SECOND: u64 = 1_000_000_000;
    /// Wall clock when CLOCK_BOOTTIME was 0.
    const BOOT: i64 = 1_700_000_000_000_000_000;

    /// A point `seconds` after boot of the cgroup 7.
    fn at(seconds: u64, cpu_usec: u64) -> Point {
        Point {
            boot_nanos: seconds * SECOND,
            unix_nanos: unix(seconds),
            cgroup_id: Some(7),
            cpu_usec: Some(cpu_usec),
            ..Point::default()
        }
    }

    fn unix(seconds: u64) -> i64 {
        BOOT + (seconds * SECOND) as i64
    }

    fn ring(capacity: usize, points: impl IntoIterator<Item = Point>) -> Ring {
        let mut ring = Ring::new(capacity);
        points.into_iter().for_each(|point| assert!(ring.add(&point), "{point:?}"));
        ring
    }

    fn cpus(series: &Series) -> Vec<Option<f64>> {
        series.points.iter().map(|of| of.rates.cpus).collect()
    }

    fn seconds(series: &Series) -> Vec<u64> {
        series.points.iter().map(|of| of.point.boot_nanos / SECOND).collect()
    }

    const ALL: RangeInclusive<i64> = i64::MIN..=i64::MAX;

    /// V14: what is older than the last is refused, what is as old is taken.
    #[test]
    fn a_point_older_than_the_last_is_refused() {
        let mut ring = ring(10, [at(5, 1), at(5, 2)]);

        assert!(!ring.add(&at(4, 3)));

        assert_eq!((ring.len(), ring.last()), (2, Some(at(5, 2))));
    }

    /// V14: the oldest go once there are too many. Memory has a bound, whatever is taken in.
    #[test]
    fn a_ring_keeps_its_capacity_and_at_most_a_block_more() {
        let capacity = 100;
        let mut ring = Ring::new(capacity);
        for seconds in 0..10_000 {
            // As bad as can be: every number changes by as much as it can.
            let number = Some(if seconds % 2 == 0 { 0 } else { u64::MAX / 2 });
            let point = Point {
                cgroup_id: number,
                cpu_usec: number,
                user_usec: number,
                system_usec: number,
                throttled_usec: number,
                memory_bytes: number,
                working_set_bytes: number,
                anon_bytes: number,
                memory_peak_bytes: number,
                swap_bytes: number,
                read_bytes: number,
                write_bytes: number,
                pids: number,
                oom_kills: number,
                disk_bytes: number,
                stalls: [number; 6],
                ..at(seconds, 0)
            };
            assert!(ring.add(&point));
            let kept = (seconds as usize + 1).min(capacity);
            assert!((kept..kept + BLOCK).contains(&ring.len()), "{seconds}: {}", ring.len());
            // A vector that grows has up to twice of what it needs.
            let most = mem::size_of::<Ring>() + (capacity + 2 * BLOCK) * Ring::MOST * 2;
            assert!(ring.bytes() < most, "{seconds}: {} of {most}", ring.bytes());
        }
        assert_eq!(ring.iter().count(), ring.len());
        assert_eq!(ring.iter().last(), ring.last());
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back_as_it_was(
            numbers in prop::collection::vec(any::<[Option<u64>; 15]>(), 1..200),
            clock in any::<i64>(),
            of in any::<u32>(),
        ) {
            let points: Vec<_> = (0..).zip(&numbers).map(|(boot_nanos, numbers)| {
                // One more than each is kept, and there is no more than the largest.
                let numbers = numbers.map(|of| of.map(|number| number.min(u64::MAX - 1)));
                let [cgroup, cpu, user, system, throttled, memory, set, anon, peak, swap, read, write, pids, oom, stall] = numbers;
                Point {
                    boot_nanos,
                    unix_nanos: clock.wrapping_mul(boot_nanos as i64),
                    cgroup_id: cgroup,
                    of,
                    cpu_usec: cpu,
                    user_usec: user,
                    system_usec: system,
                    throttled_usec: throttled,
                    memory_bytes: memory,
                    working_set_bytes: set,
                    anon_bytes: anon,
                    memory_peak_bytes: peak,
                    swap_bytes: swap,
                    read_bytes: read,
                    write_bytes: write,
                    pids,
                    oom_kills: oom,
                    disk_bytes: read,
                    stalls: [stall, None, cpu, Some(0), None, memory],
                }
            }).collect();
            let ring = ring(usize::MAX, points.iter().copied());
            prop_assert_eq!(ring.iter().collect::<Vec<_>>(), points);
        }
    }

    /// What the module says of its size.
    #[test]
    fn an_hour_takes_4_kb_of_an_idle_task_and_18_kb_of_a_busy_one() {
        let hour = |busy: u64| {
            // Nobody wakes up on the nanosecond, nor reads both clocks at once.
            let boot = |n: u64| n * 10 * SECOND + n * n % 1_000_003;
            let point = |n: u64| Point {
                boot_nanos: boot(n),
                unix_nanos: BOOT + (boot(n) + n * 7919 % 200) as i64,
                user_usec: Some(busy * n * 4_100_037),
                system_usec: Some(busy * n * 900_013),
                memory_bytes: Some(4096 * (50_000 + busy * (n * 7919 % 5000))),
                working_set_bytes: Some(4096 * (40_000 + busy * (n * 7907 % 5000))),
                anon_bytes: Some(4096 * (30_000 + busy * (n * 7901 % 5000))),
                memory_peak_bytes: Some(4096 * 60_000),
                swap_bytes: Some(0),
                read_bytes: Some(busy * n * 1_048_576),
                write_bytes: Some(busy * n * 4_194_304),
                pids: Some(9 + busy * (n % 3)),
                oom_kills: Some(0),
                disk_bytes: Some(4096 * (70_000 + busy * n / 6)),
                stalls: [0, 1, 2, 3, 4, 5].map(|of| Some(busy * (n * (of + 3) % 40))),
                ..at(0, busy * n * 5_000_050)
            };
            ring(360, (0..360).map(point)).bytes()
        };
        let (idle, busy) = (hour(0), hour(1));
        assert!((3_000..5_000).contains(&idle), "{idle}");
        assert!((16_000..20_000).contains(&busy), "{busy}");
    }

    /// V14's edges: before the first the first, after the last the last, of two equally near the later; of nothing nothing.
    #[test]
    fn the_point_nearest_to_a_time_is_told() {
        let ring = ring(10, [at(10, 1), at(20, 2), at(30, 3)]);
        let nearest = |seconds| ring.nearest(unix(seconds)).unwrap().0.cpu_usec.unwrap();

        assert_eq!([0, 10, 14, 15, 24, 26, 99].map(nearest), [1, 1, 1, 2, 2, 3, 3]);
        assert_eq!(ring.nearest(unix(10)).unwrap().1, Some(20 * SECOND));
        assert_eq!(ring.nearest(unix(30)).unwrap().1, None);
        assert_eq!(Ring::new(1).nearest(0), None);
    }

    #[test]
    fn a_wall_clock_that_was_set_back_spoils_no_search_and_no_rate() {
        let back = |seconds, cpu_usec| {
            let point = at(seconds, cpu_usec);
            Point { unix_nanos: point.unix_nanos - 3600 * SECOND as i64, ..point }
        };
        let ring = ring(10, [at(10, 0), at(20, 10_000_000), back(30, 20_000_000)]);

        assert_eq!(ring.nearest(unix(20)).unwrap().0, at(20, 10_000_000));
        assert_eq!(
            ring.nearest(unix(30) - 3600 * SECOND as i64).unwrap().0.cpu_usec,
            Some(20_000_000)
        );
        assert_eq!(cpus(&ring.series(&ALL, 9)), [None, Some(1.0), Some(1.0)]);
    }

    /// V11 and attack 50: a rate is of one cgroup, and never negative.
    #[test]
    fn a_new_cgroup_begins_anew_and_no_rate_is_negative() {
        let of = |id, seconds, cpu| Point { cgroup_id: Some(id), ..at(seconds, cpu) };
        let ring = ring(
            10,
            [
                of(7, 10, 5_000_000),
                of(7, 20, 10_000_000),
                of(8, 30, 11_000_000),
                of(8, 32, 12_000_000),
                of(8, 34, 2_000_000),
                of(8, 34, 2_000_000),
                of(8, 38, 4_000_000),
            ],
        );

        let rates = cpus(&ring.series(&ALL, 99));

        assert_eq!(rates, [None, Some(0.5), None, Some(0.5), None, None, Some(0.5)]);
    }

    #[test]
    fn a_series_has_the_rate_of_its_first_point_from_the_one_before_it() {
        let ring = ring(10, [at(10, 0), at(20, 5_000_000), at(30, 6_000_000), at(40, 6_000_000)]);

        let series = ring.series(&(unix(20)..=unix(30)), 99);

        assert_eq!((seconds(&series), cpus(&series)), (vec![20, 30], vec![Some(0.5), Some(0.1)]));
        assert_eq!(series.peak_rates.cpus, Some(0.5));
        assert_eq!(ring.series(&(unix(41)..=unix(50)), 99), Series::default());
    }

    #[test]
    fn fewer_points_lose_no_peak_and_no_cpu_time() {
        let of = |second: u64| Point {
            memory_bytes: Some(if second == 3 { 900 } else { 100 }),
            cgroup_id: Some(if second < 5 { 7 } else { 8 }),
            ..at(second, second * 1_000_000)
        };
        let ring = ring(100, (0..10).map(of));

        let series = ring.series(&ALL, 3);

        assert_eq!(seconds(&series), [2, 5, 9]);
        assert_eq!(
            cpus(&series),
            [Some(1.0); 3],
            "the step into the new cgroup is in none of them"
        );
        let memory: Vec<_> = series.points.iter().map(|of| of.point.memory_bytes).collect();
        assert_eq!(memory, [Some(100), Some(900), Some(100)]);
        assert_eq!(series.peak.memory_bytes, Some(900));
        assert_eq!(seconds(&ring.series(&ALL, 0)), [9]);
        assert_eq!(ring.series(&ALL, 10).points.len(), 10);
    }

    fn sample(seconds: u64, cgroup_id: u64, cpu_millis: u64) -> Sample {
        Point { cgroup_id: Some(cgroup_id), ..at(seconds, cpu_millis * 1000) }.sample().unwrap()
    }

    fn process(name: &str, live: Option<(u32, Sample)>) -> ProcessUsage {
        let (run, sample) = live.unzip();
        ProcessUsage { name: name.to_owned(), run, sample, recorded: None }
    }

    fn reading(seconds: u64, processes: Vec<ProcessUsage>) -> TaskUsage {
        TaskUsage {
            state: TaskState::Active.into(),
            sample: Some(sample(seconds, 1, seconds * 500)),
            processes,
            ..TaskUsage::default()
        }
    }

    #[test]
    fn processes_are_told_as_they_were_when_the_task_was_read() {
        let mut history = History::new(10);
        let a = |run, seconds, cgroup| process("a", Some((run, sample(seconds, cgroup, seconds))));
        history.add(&reading(10, vec![a(0, 10, 5), process("b", None)]));
        assert!(history.may_have("b") && !history.may_have("c"));
        // Of the task alone.
        history.add(&reading(20, vec![]));
        let b = || process("b", None);
        history.add(&reading(30, vec![process("a", None), b()]));
        history.add(&reading(40, vec![process("a", None), b()]));
        history.add(&reading(50, vec![a(1, 50, 6), b()]));
        history.add(&reading(60, vec![a(1, 60, 6), b()]));

        let runs = |seconds| {
            let told = history.get(Timestamp::from_unix_nanos(unix(seconds)), true).unwrap();
            let run = |of: &ProcessUsage| {
                (of.run, of.sample.as_ref().map(|sample| sample.boot_nanos / SECOND))
            };
            assert_eq!(told.sample.as_ref().unwrap().boot_nanos, seconds * SECOND);
            told.processes.iter().map(run).collect::<Vec<_>>()
        };
        let none = (None, None);
        assert_eq!(runs(10), [(Some(0), Some(10)), none]);
        assert_eq!(runs(20), [(Some(0), Some(10)), none]);
        assert_eq!([runs(30), runs(40)], [[none; 2]; 2]);
        assert_eq!(runs(50), [(Some(1), Some(50)), none]);
        let told = history.get(Timestamp::from_unix_nanos(unix(60)), true).unwrap();
        assert_eq!(told.sample.unwrap().cpu.unwrap().rate, Some(0.5));
        assert_eq!(told.processes[0].sample.as_ref().unwrap().cpu.unwrap().rate, Some(0.001));
        let series = history.series(Some("a"), &ALL, 99);
        assert_eq!(seconds(&series), [10, 30, 50, 60], "the end of a run is kept once");
        assert_eq!(cpus(&series), [None, None, None, Some(0.001)]);
        assert_eq!(history.series(Some("b"), &ALL, 99), Series::default());
    }

    #[test]
    fn each_reading_has_the_sandbox_as_it_was_measured_last() {
        let mut history = History::new(10);
        let disk = |bytes| DiskUsage { bytes, inodes: Some(3), ..DiskUsage::default() };
        history.add(&reading(10, vec![process("a", Some((0, sample(10, 5, 1))))]));
        history.measured(disk(4096));
        history.add(&reading(20, vec![process("a", Some((0, sample(20, 5, 1))))]));
        history.measured(disk(512));

        let then = |seconds| {
            let told = history.get(Timestamp::from_unix_nanos(unix(seconds)), false).unwrap();
            told.disk.map(|disk| (disk.bytes, disk.inodes))
        };
        assert_eq!([then(10), then(20)], [None, Some((4096, None))]);
        assert_eq!(history.disk(), Some(disk(512)));
        let series = history.series(None, &ALL, 9);
        assert_eq!(series.peak_to_proto().unwrap().disk_bytes, Some(4096));
        assert_eq!(series.points[1].to_proto(false).disk_bytes, Some(4096));
        assert_eq!(history.series(Some("a"), &ALL, 9).peak.disk_bytes, None);
    }

    /// Else the second would have no rate: no time has passed.
    #[test]
    fn a_reading_is_not_kept_twice() {
        let mut history = History::new(10);
        let told = [10, 20, 20, 30, 20].map(|seconds| history.add(&reading(seconds, vec![])));

        assert_eq!(told, [true, true, true, true, false]);
        assert_eq!(cpus(&history.series(None, &ALL, 9)), [None, Some(0.5), Some(0.5)]);
    }

    #[test]
    fn a_reading_of_no_cgroup_is_not_kept() {
        let mut history = History::new(10);

        assert!(!history.add(&TaskUsage::default()));

        assert_eq!(history.get(Timestamp::default(), true), None);
    }

    /// A file that is not read for a history holds nothing of it, and each that is does.
    #[test]
    fn a_history_is_read_from_the_files_that_it_needs() {
        let kept = |sample: &Sample| Point::of(sample, 0);

        let whole = kept(&content::whole(Extent::Kept));

        assert_eq!(whole, kept(&content::whole(Extent::All)));
        for (name, without) in content::each_without(Extent::Kept) {
            assert_ne!(kept(&without), whole, "{name}");
        }
    }

    /// V16 and attack 50: what a host does not tell is absent, and hides nothing else.
    #[test]
    fn what_is_kept_of_a_sample_has_what_is_known_and_no_more() {
        let cpu = CpuUsage {
            time: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            ..CpuUsage::default()
        };
        let memory = MemoryUsage { current_bytes: Some(0), ..MemoryUsage::default() };
        let stall = |avg10| Some(Stall { avg10: Some(avg10), total: None });
        let told = Sample {
            time: Some(Timestamp::from_unix_nanos(unix(3))),
            boot_nanos: 3 * SECOND,
            cgroup_id: 9,
            cpu: Some(cpu),
            memory: Some(memory),
            pressure: Some(PressureUsage {
                io: Some(Pressure { some: stall(99.37), full: stall(1e300) }),
                ..PressureUsage::default()
            }),
            ..Sample::default()
        };

        let kept = Point::of(&told, 0).sample().unwrap();

        let io = Some(Pressure { some: stall(99.37), full: None });
        let pressure = Some(PressureUsage { io, ..PressureUsage::default() });
        assert_eq!(kept, Sample { pressure, ..told });
    }
}
