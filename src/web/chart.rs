//! What was used over time, as drawings.
//!
//! Each is a line or two in a box that stretches with the page; what it says is beside it in words. A gap in what is known is a gap in
//! the line, never a zero.

use maud::{Markup, html};

use super::layout::text;
use crate::proto::{Pressure, Timestamp, UsagePoint, UsageRates};
use crate::words;

/// The units in which lines are drawn; they are stretched to the size of the box.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 160.0;
/// Room above the highest point.
const HEADROOM: f64 = 1.08;

/// A line.
struct Line {
    name: &'static str,
    /// By point; `None`: it is not known.
    values: Vec<Option<f64>>,
}

/// Lines over time.
struct Chart<'a> {
    title: &'static str,
    /// Nanoseconds since 1970, by point.
    times: &'a [i64],
    lines: Vec<Line>,
    /// A value as text.
    unit: fn(f64) -> String,
    /// The least that the top stands for, so that what is next to nothing looks like it.
    least: f64,
    /// The most that it may be.
    limit: Option<f64>,
}

/// What may not be exceeded.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    /// CPUs.
    pub(super) cpus: Option<f64>,
    /// Bytes of memory.
    pub(super) memory: Option<f64>,
}

/// CPU, memory, I/O and pressure; nothing if nothing is known of them.
pub(super) fn charts(points: &[UsagePoint], limits: Limits) -> Markup {
    let times: Vec<i64> =
        points.iter().map(|of| of.time.unwrap_or_default().unix_nanos()).collect();
    let rate = |name, of: fn(&UsageRates) -> Option<f64>| {
        line(name, points, |point| of(point.rates.as_ref()?))
    };
    let memory = |name, of: fn(&crate::proto::MemoryUsage) -> Option<u64>| {
        line(name, points, |point| Some(of(point.sample.as_ref()?.memory.as_ref()?)? as f64))
    };
    let pressure = |name, of: fn(&crate::proto::PressureUsage) -> Option<&Pressure>| {
        line(name, points, |point| {
            of(point.sample.as_ref()?.pressure.as_ref()?)?.some.as_ref()?.avg10
        })
    };
    let times = times.as_slice();
    let charts = [
        Chart {
            title: "CPU",
            times,
            lines: vec![
                rate("used", |rates| rates.cpus),
                rate("kept from it by the limit", |rates| rates.throttled_cpus),
            ],
            unit: |cpus| format!("{cpus:.2} CPUs"),
            least: 0.1,
            limit: limits.cpus,
        },
        Chart {
            title: "Memory",
            times,
            lines: vec![
                memory("charged", |memory| memory.current_bytes),
                memory("working set", |memory| memory.working_set_bytes),
            ],
            unit: |bytes| words::bytes(bytes as u64),
            least: 1024.0 * 1024.0,
            limit: limits.memory,
        },
        Chart {
            title: "Disk I/O",
            times,
            lines: vec![
                rate("read", |rates| rates.read_bytes_per_second),
                rate("written", |rates| rates.write_bytes_per_second),
            ],
            unit: |bytes| format!("{}/s", words::bytes(bytes as u64)),
            least: 1024.0,
            limit: None,
        },
        Chart {
            title: "Disk space",
            times,
            lines: vec![line("taken by the sandbox", points, |point| {
                Some(point.disk_bytes? as f64)
            })],
            unit: |bytes| words::bytes(bytes as u64),
            least: 1024.0 * 1024.0,
            limit: None,
        },
        Chart {
            title: "Pressure",
            times,
            lines: vec![
                pressure("CPU", |pressure| pressure.cpu.as_ref()),
                pressure("memory", |pressure| pressure.memory.as_ref()),
                pressure("I/O", |pressure| pressure.io.as_ref()),
            ],
            unit: |percent| format!("{percent:.1} %"),
            least: 1.0,
            limit: None,
        },
    ];
    html! { div.charts { @for chart in charts.iter().filter(|chart| chart.is_known()) { (chart.drawn()) } } }
}

fn line(
    name: &'static str,
    points: &[UsagePoint],
    value: impl Fn(&UsagePoint) -> Option<f64>,
) -> Line {
    let values = points.iter().map(|point| value(point).filter(|value| value.is_finite()));
    Line { name, values: values.collect() }
}

impl Line {
    fn most(&self) -> Option<f64> {
        self.values.iter().flatten().copied().reduce(f64::max)
    }

    fn last(&self) -> Option<f64> {
        self.values.last().copied().flatten()
    }
}

impl Chart<'_> {
    fn is_known(&self) -> bool {
        self.times.len() > 1 && self.lines.iter().any(|line| line.most().is_some())
    }

    fn top(&self) -> f64 {
        let most = self.lines.iter().filter_map(Line::most).fold(self.least, f64::max);
        // A limit far above would leave nothing to see of what is beneath it.
        let limit = self.limit.filter(|&limit| limit < most * 2.0).unwrap_or(0.0);
        most.max(limit) * HEADROOM
    }

    /// Place of a point in the drawing.
    fn x(&self, at: usize) -> f64 {
        let (first, last) = (self.times[0], self.times[self.times.len() - 1]);
        let whole = last.saturating_sub(first).max(1) as f64;
        (self.times[at].saturating_sub(first) as f64 / whole).clamp(0.0, 1.0) * WIDTH
    }

    /// A line, broken where it is not known; a point that stands alone is as wide as it is thick.
    fn path(&self, line: &Line, top: f64) -> String {
        let mut path = String::new();
        let mut is_broken = true;
        for (at, value) in line.values.iter().enumerate() {
            let Some(value) = value else {
                is_broken = true;
                continue;
            };
            let y = HEIGHT - (value / top).clamp(0.0, 1.0) * HEIGHT;
            let (x, step) = (self.x(at), if is_broken { 'M' } else { 'L' });
            path.push_str(&format!("{step}{x:.1} {y:.1}"));
            if is_broken {
                path.push_str("h.1");
            }
            is_broken = false;
        }
        path
    }

    fn drawn(&self) -> Markup {
        let top = self.top();
        let limit = self.limit.filter(|&limit| limit <= top);
        let known: Vec<_> =
            self.lines.iter().enumerate().filter(|(_, line)| line.most().is_some()).collect();
        let said: Vec<String> = known.iter().map(|(_, line)| self.said(line)).collect();
        let times =
            [self.times[0], self.times[self.times.len() - 1]].map(Timestamp::from_unix_nanos);
        html! {
            figure.chart {
                figcaption {
                    h3 { (self.title) }
                    ul.legend {
                        @for ((at, _), said) in known.iter().zip(&said) {
                            li class={ "line-" (at) } { (text(said)) }
                        }
                        @if let Some(limit) = self.limit { li.limit { "limit " ((self.unit)(limit)) } }
                    }
                }
                div.plot {
                    span.top aria-hidden="true" { ((self.unit)(top / HEADROOM)) }
                    svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img"
                        aria-label={ (self.title) ": " (said.join("; ")) } {
                        @for part in [0.25, 0.5, 0.75] {
                            line.grid x1="0" x2=(WIDTH) y1=(HEIGHT * part) y2=(HEIGHT * part) {}
                        }
                        @if let Some(limit) = limit {
                            @let y = format!("{:.1}", HEIGHT - limit / top * HEIGHT);
                            line.limit x1="0" x2=(WIDTH) y1=(y) y2=(y) {}
                        }
                        @for (at, line) in known.iter().rev() {
                            path class={ "line line-" (at) } d=(self.path(line, top)) {}
                        }
                    }
                }
                div.axis aria-hidden="true" {
                    @for time in times { span { (words::clock(time).get(11..19).unwrap_or_default()) } }
                }
            }
        }
    }

    fn said(&self, line: &Line) -> String {
        let unit = self.unit;
        let now = line.last().map_or_else(|| "now unknown".to_owned(), unit);
        let most = line.most().map(unit).unwrap_or_default();
        format!("{} {now}, most {most}", line.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Sample;

    fn point(seconds: i64, cpus: Option<f64>) -> UsagePoint {
        UsagePoint {
            time: Some(Timestamp { seconds, nanos: 0 }),
            sample: Some(Sample::default()),
            rates: Some(UsageRates { cpus, ..UsageRates::default() }),
            ..UsagePoint::default()
        }
    }

    #[test]
    fn a_gap_in_what_is_known_is_a_gap_in_the_line() {
        let points =
            [point(0, Some(1.0)), point(10, Some(0.5)), point(20, None), point(40, Some(0.0))];
        let told = charts(&points, Limits::default()).into_string();

        let top = HEIGHT - HEIGHT / HEADROOM;
        let middle = HEIGHT - HEIGHT / HEADROOM / 2.0;
        let path = format!("M0.0 {top:.1}h.1L250.0 {middle:.1}M1000.0 160.0h.1");
        assert!(told.contains(&path), "{told}");
        assert!(told.contains("used 0.00 CPUs, most 1.00 CPUs"), "{told}");
    }

    #[test]
    fn what_a_host_does_not_account_for_is_not_drawn() {
        let told =
            charts(&[point(0, Some(0.0)), point(1, Some(0.0))], Limits::default()).into_string();
        assert!(told.contains("<h3>CPU</h3>") && !told.contains("<h3>Memory</h3>"), "{told}");

        let nothing =
            [charts(&[], Limits::default()), charts(&[point(0, Some(1.0))], Limits::default())];
        for nothing in nothing {
            assert!(!nothing.into_string().contains("<figure"));
        }
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let points =
            [point(5, Some(f64::NAN)), point(5, Some(f64::INFINITY)), point(-5, Some(1e300))];
        let told = charts(&points, Limits { cpus: Some(1e308), memory: None }).into_string();
        assert!(!told.contains("NaN") && !told.contains("inf\""), "{told}");
    }
}
