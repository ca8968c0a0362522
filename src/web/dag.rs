//! The order of the processes of a task, as a drawing: from left to right, each process in a column after all that it waits for.
//! Finalizers come after all others, beyond a line.
//!
//! It is drawn in whole numbers and without a style of its own: colours are classes of the style sheet, and each process says its
//! state in words. Each is a link, so that the drawing can be walked by keys and read out.

use maud::{Markup, html};

use super::layout::{look_of_process, process_word, text};
use crate::proto::ProcessState;
use crate::task::TaskSpec;

/// Most processes, or lines between them, that are drawn: of more, nobody sees anything.
const MOST: usize = 150;

/// Size of a process, and the gaps between two.
const WIDTH: usize = 152;
const HEIGHT: usize = 46;
const GAP_X: usize = 44;
const GAP_Y: usize = 16;
const MARGIN: usize = 12;
/// Characters of a name that fit.
const NAME: usize = 17;

/// A process as it is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) name: &'a str,
    pub(super) state: Option<ProcessState>,
    pub(super) runs: usize,
}

/// Where a process stands: its column, and its place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    column: usize,
    row: usize,
}

impl Place {
    fn x(self) -> usize {
        MARGIN + self.column * (WIDTH + GAP_X)
    }

    fn y(self) -> usize {
        MARGIN + self.row * (HEIGHT + GAP_Y)
    }

    fn middle(self) -> usize {
        self.y() + HEIGHT / 2
    }
}

/// What stands in a column.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Process(u32),
    /// A line that passes through, by its number: so none runs beneath a process that it has nothing to do with.
    Way(usize),
}

/// The columns of a drawing.
#[derive(Debug, Default)]
struct Layout {
    /// Who waits for whom: first the one that is waited for.
    edges: Vec<(u32, u32)>,
    /// By process.
    places: Vec<Place>,
    /// By edge: where it passes through the columns between.
    ways: Vec<Vec<Place>>,
    columns: usize,
    rows: usize,
    /// The first column of finalizers, if there are any.
    finalizers: Option<usize>,
}

impl Layout {
    fn of(spec: &TaskSpec) -> Self {
        let edges: Vec<_> = edges(spec).collect();
        let mut layout = Self {
            places: vec![Place::default(); spec.processes.len()],
            ways: vec![Vec::new(); edges.len()],
            edges,
            ..Self::default()
        };
        let mut columns = layout.columns_of(spec);
        layout.columns = columns.len();
        for (number, &(before, after)) in layout.edges.iter().enumerate() {
            let [from, to] = [before, after].map(|of| layout.places[of as usize].column);
            for column in columns.iter_mut().take(to).skip(from + 1) {
                column.push(Slot::Way(number));
            }
        }
        let mut into = vec![Vec::new(); spec.processes.len()];
        for (number, &(_, after)) in layout.edges.iter().enumerate() {
            into[after as usize].push(number);
        }
        for (column, mut slots) in columns.into_iter().enumerate() {
            // Beside what it comes from, on average: so fewer lines cross.
            slots.sort_by_key(|slot| match *slot {
                Slot::Process(process) => layout.level(&into[process as usize]),
                Slot::Way(edge) => layout.level(&[edge]),
            });
            layout.rows = layout.rows.max(slots.len());
            for (row, slot) in slots.into_iter().enumerate() {
                let place = Place { column, row };
                match slot {
                    Slot::Process(process) => layout.places[process as usize] = place,
                    Slot::Way(edge) => layout.ways[edge].push(place),
                }
            }
        }
        layout
    }

    /// The processes by column, finalizers after all others; each is told its own.
    fn columns_of(&mut self, spec: &TaskSpec) -> Vec<Vec<Slot>> {
        let mut columns: Vec<Vec<Slot>> = Vec::new();
        let layers = spec.graph.layers();
        for of_final in [false, true] {
            let is_of = |process: &u32| spec.processes[*process as usize].is_final == of_final;
            let begin = columns.len();
            for layer in &layers {
                let column: Vec<u32> = layer.iter().copied().filter(is_of).collect();
                if column.is_empty() {
                    continue;
                }
                for &process in &column {
                    self.places[process as usize].column = columns.len();
                }
                columns.push(column.into_iter().map(Slot::Process).collect());
            }
            if of_final && begin < columns.len() {
                self.finalizers = Some(begin);
            }
        }
        columns
    }

    /// Twice the average row that these edges come from; what none comes to stands last, in the order in which it is.
    fn level(&self, edges: &[usize]) -> usize {
        let from = |&edge: &usize| {
            let last = self.ways[edge].last();
            last.unwrap_or(&self.places[self.edges[edge].0 as usize]).row
        };
        let rows: usize = edges.iter().map(from).sum();
        if edges.is_empty() { usize::MAX } else { rows * 2 / edges.len() }
    }

    fn width(&self) -> usize {
        2 * MARGIN + self.columns * (WIDTH + GAP_X) - GAP_X.min(self.columns * GAP_X)
    }

    fn height(&self) -> usize {
        2 * MARGIN + self.rows * (HEIGHT + GAP_Y) - GAP_Y.min(self.rows * GAP_Y)
    }

    /// The line of an edge, through the columns between.
    fn path(&self, edge: usize) -> String {
        let (before, after) = self.edges[edge];
        let (from, to) = (self.places[before as usize], self.places[after as usize]);
        let (mut x, mut y) = (from.x() + WIDTH, from.middle());
        let mut path = format!("M{x} {y}");
        let bend = GAP_X / 2;
        let mut curve = |path: &mut String, to_x: usize, to_y: usize| {
            path.push_str(&format!(
                "C{} {y} {} {to_y} {to_x} {to_y}",
                x + bend,
                to_x.saturating_sub(bend)
            ));
            (x, y) = (to_x + WIDTH, to_y);
        };
        for way in &self.ways[edge] {
            curve(&mut path, way.x(), way.middle());
            path.push_str(&format!("h{WIDTH}"));
        }
        curve(&mut path, to.x() - 2, to.middle());
        path
    }
}

/// Who waits for whom: first the one that is waited for.
fn edges(spec: &TaskSpec) -> impl Iterator<Item = (u32, u32)> {
    let from = (0..).zip(&spec.graph.successors);
    from.flat_map(|(before, after)| after.iter().map(move |&after| (before, after)))
}

/// The drawing; `nodes` are the processes in declared order, `url` the page of one by its name.
pub(super) fn drawing(spec: &TaskSpec, nodes: &[Node<'_>], url: impl Fn(&str) -> String) -> Markup {
    let most = spec.processes.len().max(edges(spec).count());
    if most > MOST || nodes.len() != spec.processes.len() {
        return html! { p.quiet { (spec.processes.len()) " processes are too many for a drawing: see the table." } };
    }
    let layout = Layout::of(spec);
    let (width, height) = (layout.width(), layout.height());
    html! {
        div.scroll.dag role="region" aria-label="Order of the processes" tabindex="0" {
            svg width=(width) height=(height) viewBox={ "0 0 " (width) " " (height) } {
                defs {
                    marker #arrow viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto" {
                        path.head d="M0 0 8 4 0 8z" {}
                    }
                }
                @if let Some(column) = layout.finalizers.filter(|&column| column > 0) {
                    @let x = Place { column, row: 0 }.x() - GAP_X / 2;
                    line.border x1=(x) x2=(x) y1="4" y2=(height - 4) {}
                }
                g aria-hidden="true" {
                    @for (number, &(before, _)) in layout.edges.iter().enumerate() {
                        @let is_done = nodes[before as usize].state == Some(ProcessState::Success);
                        path.edge.done[is_done] d=(layout.path(number)) marker-end="url(#arrow)" {}
                    }
                }
                @for (node, (place, process)) in nodes.iter().zip(layout.places.iter().zip(&spec.processes)) {
                    (drawn(node, *place, process.is_final, &url(node.name)))
                }
            }
        }
    }
}

fn drawn(node: &Node<'_>, place: Place, is_final: bool, url: &str) -> Markup {
    let (class, sign) = look_of_process(node.state);
    let (x, y) = (place.x(), place.y());
    let name = text(node.name);
    let short = match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_string(),
    };
    let word = process_word(node.state);
    let runs = match node.runs {
        0 | 1 => String::new(),
        runs => format!(" · {runs} runs"),
    };
    html! {
        a.node href=(url) {
            title { (name) ": " (word) (runs) }
            rect class={ "box " (class) @if is_final { " final" } } x=(x) y=(y) width=(WIDTH) height=(HEIGHT) rx="8" {}
            text.name x=(x + 12) y=(y + 19) { (short) }
            text class={ "state " (class) } x=(x + 12) y=(y + 36) { (sign) " " (word) (runs) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Graph, ProcessName, ProcessSpec};

    fn spec(names: &[(&str, bool)], edges: &[(u32, u32)]) -> TaskSpec {
        let process = |&(name, is_final): &(&str, bool)| {
            let spec = ProcessSpec::new(ProcessName::new(name).unwrap(), "true");
            ProcessSpec { is_final, ..spec }
        };
        TaskSpec {
            name: "t".to_owned(),
            processes: names.iter().map(process).collect(),
            graph: Graph::new(names.len(), edges.iter().copied()).unwrap(),
            resources: None,
            max_failures: 1,
            max_concurrency: 0,
            finalization_wait: std::time::Duration::ZERO,
            user: None,
        }
    }

    fn places(spec: &TaskSpec) -> Vec<(usize, usize)> {
        Layout::of(spec).places.iter().map(|place| (place.column, place.row)).collect()
    }

    #[test]
    fn each_process_stands_after_all_that_it_waits_for_and_finalizers_after_all() {
        let names = [("a", false), ("b", false), ("c", false), ("d", false), ("f", true)];
        let spec = spec(&names, &[(0, 2), (1, 3), (0, 3)]);

        assert_eq!(places(&spec), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]);
        assert_eq!(Layout::of(&spec).finalizers, Some(2));
    }

    /// A line to something beyond the next column has a row of its own in those between.
    #[test]
    fn no_line_runs_beneath_a_process() {
        let names = ["a", "b", "c", "d"].map(|name| (name, false));
        let layout = Layout::of(&spec(&names, &[(0, 1), (1, 2), (0, 3), (2, 3)]));

        let way = layout.edges.iter().position(|&edge| edge == (0, 3)).unwrap();
        assert_eq!(layout.ways[way].len(), 2);
        for place in &layout.ways[way] {
            assert!(!layout.places.contains(place), "{place:?}");
        }
    }

    #[test]
    fn no_two_processes_stand_at_the_same_place() {
        let names: Vec<String> = (0..40).map(|n| format!("p{n}")).collect();
        let names: Vec<_> = names.iter().map(|name| (name.as_str(), name.ends_with('7'))).collect();
        let edges: Vec<(u32, u32)> =
            (0..40).filter(|n| n % 10 != 7).flat_map(|n| [(n, n * 2), (n, n * 3 + 1)]).collect();
        let is_regular = |n: &u32| *n < 40 && n % 10 != 7;
        let edges: Vec<_> = edges.into_iter().filter(|(a, b)| a < b && is_regular(b)).collect();
        let spec = spec(&names, &edges);

        let mut places = places(&spec);
        for (before, after) in edges {
            assert!(places[before as usize].0 < places[after as usize].0);
        }
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 40);
    }

    #[test]
    fn a_name_is_text_and_too_many_are_not_drawn() {
        let spec = spec(&[("<b>\"&", false)], &[]);
        let node = Node { name: "<b>\"&", state: Some(ProcessState::Failed), runs: 3 };
        let drawing =
            drawing(&spec, &[node], |name| super::super::url::of("process", &["t", name]));
        let drawing = drawing.into_string();

        assert!(drawing.contains("&lt;b&gt;") && !drawing.contains("<b>"));
        assert!(drawing.contains("FAILED · 3 runs"));

        let names: Vec<String> = (0..=MOST).map(|n| n.to_string()).collect();
        let names: Vec<_> = names.iter().map(|name| (name.as_str(), false)).collect();
        let many = super::drawing(&self::spec(&names, &[]), &[], |_| String::new()).into_string();
        assert!(many.contains("too many"));
    }
}
