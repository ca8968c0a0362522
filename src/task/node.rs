//! The YAML of a task file as a tree in which every node knows its place.
//!
//! A tree holds one document of known size: what aliases expand it to is counted as it is built,
//! so that whoever walks it, through aliases and merge keys too, takes at most [`MAX_VALUES`]
//! steps and meets at most [`MAX_TEXT`] bytes of text.

use std::borrow::Cow;
use std::collections::HashSet;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::diagnostic::{Problem, Problems};
use super::quoted;

/// Most values of a file, every use of an alias counted in full.
pub(super) const MAX_VALUES: u32 = 500_000;
/// Most bytes of text in a file, every use of an alias counted in full.
pub(super) const MAX_TEXT: u32 = 4 << 20;
/// Deepest nesting of lists and mappings in brackets, and of those by indentation. A task needs 6.
pub(super) const MAX_DEPTH: usize = 32;

/// A node of a tree, by its index.
pub(super) type NodeId = u32;

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node<'s> {
    start: u32,
    end: u32,
    pub(super) value: Value<'s>,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Value<'s> {
    /// A text, number, flag or null: all are kept as they are written.
    Scalar {
        text: Cow<'s, str>,
        /// Whether it is written without quotes, so that it may be other than text.
        plain: bool,
    },
    /// A list.
    List(Vec<NodeId>),
    /// Keys, all of them different scalars, and values.
    Mapping(Vec<(NodeId, NodeId)>),
    /// Something that is reported already.
    Refused,
}

/// A document.
#[derive(Debug)]
pub(super) struct Tree<'s> {
    source: &'s str,
    nodes: Vec<Node<'s>>,
    root: NodeId,
}

impl<'s> Tree<'s> {
    /// Reads the one document of `source`; `None` if there is no tree to speak of.
    pub(super) fn read(source: &'s str, problems: &mut Problems) -> Option<Self> {
        let mut options = granit_parser::Options::default();
        options.emit_unresolved_aliases = true;
        options.flow_nesting_limit = MAX_DEPTH;
        options.block_nesting_limit = MAX_DEPTH;
        let mut parser = Parser::new_from_str_with_options(source, options);
        let mut builder = Builder::new(source, problems);
        match builder.build(&mut parser) {
            Ok(root) => Some(Self { source, nodes: builder.nodes, root }),
            Err(problem) => {
                problems.add(problem);
                None
            }
        }
    }

    pub(super) fn root(&self) -> NodeId {
        self.root
    }

    pub(super) fn node(&self, id: NodeId) -> &Node<'s> {
        &self.nodes[id as usize]
    }

    /// The byte offsets of a node.
    pub(super) fn span(&self, id: NodeId) -> (usize, usize) {
        let node = self.node(id);
        (node.start as usize, node.end as usize)
    }

    /// The text that a node is written as.
    pub(super) fn written(&self, id: NodeId) -> &'s str {
        let (start, end) = self.span(id);
        self.source.get(start..end).unwrap_or_default()
    }

    /// The text of a scalar; empty for anything else.
    pub(super) fn text(&self, id: NodeId) -> &str {
        text(&self.nodes, id)
    }

    /// Whether the node is null, which stands for an absent field.
    pub(super) fn is_null(&self, id: NodeId) -> bool {
        matches!(
            &self.node(id).value,
            Value::Scalar { text, plain: true }
                if matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL")
        )
    }

    /// What a node is, for a message.
    pub(super) fn describe(&self, id: NodeId) -> String {
        match &self.node(id).value {
            Value::Scalar { .. } if self.is_null(id) => "nothing".into(),
            Value::Scalar { text, .. } => quoted(text),
            Value::List(_) | Value::Mapping(_) | Value::Refused => self.kind(id).into(),
        }
    }

    /// The kind of a node, for a message.
    pub(super) fn kind(&self, id: NodeId) -> &'static str {
        match &self.node(id).value {
            Value::Scalar { .. } if self.is_null(id) => "null",
            Value::Scalar { .. } => "a text or number",
            Value::List(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Refused => "refused",
        }
    }

    /// Keys and values of a mapping, those that it merges in after its own. Where a key comes
    /// twice, the first counts. Empty for a node that is no mapping.
    pub(super) fn entries(&self, mapping: NodeId) -> Entries<'_, 's> {
        Entries { tree: self, mappings: vec![mapping], place: 0, merged: Vec::new() }
    }

    /// The value of `key` in a mapping.
    pub(super) fn get(&self, mapping: NodeId, key: &str) -> Option<NodeId> {
        self.entries(mapping).find(|&(name, _)| self.text(name) == key).map(|(_, value)| value)
    }
}

/// Walks a mapping, then the mappings that it merges in, depth first.
pub(super) struct Entries<'t, 's> {
    tree: &'t Tree<'s>,
    /// Mappings still to be walked, the next one last.
    mappings: Vec<NodeId>,
    /// How much of the last mapping is walked.
    place: usize,
    /// What the last mapping merges in.
    merged: Vec<NodeId>,
}

impl Iterator for Entries<'_, '_> {
    type Item = (NodeId, NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let &mapping = self.mappings.last()?;
            let Value::Mapping(entries) = &self.tree.node(mapping).value else {
                self.mappings.pop();
                continue;
            };
            let Some(&(key, value)) = entries.get(self.place) else {
                self.mappings.pop();
                self.place = 0;
                self.mappings.extend(self.merged.drain(..).rev());
                continue;
            };
            self.place += 1;
            if !is_merge(&self.tree.nodes, key) {
                return Some((key, value));
            }
            match &self.tree.node(value).value {
                Value::List(mappings) => self.merged.extend(mappings),
                _ => self.merged.push(value),
            }
        }
    }
}

fn text<'t>(nodes: &'t [Node<'_>], id: NodeId) -> &'t str {
    match &nodes[id as usize].value {
        Value::Scalar { text, .. } => text,
        Value::List(_) | Value::Mapping(_) | Value::Refused => "",
    }
}

/// Whether a key is the merge key.
fn is_merge(nodes: &[Node<'_>], key: NodeId) -> bool {
    matches!(&nodes[key as usize].value, Value::Scalar { text, plain: true } if text == "<<")
}

/// What a part of the file expands to.
#[derive(Debug, Clone, Copy, Default)]
struct Size {
    values: u32,
    text: u32,
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            text: self.text.saturating_add(other.text),
        }
    }

    fn minus(self, earlier: Self) -> Self {
        Self { values: self.values - earlier.values, text: self.text - earlier.text }
    }
}

/// A collection that is not closed yet.
struct Open {
    node: NodeId,
    anchor: usize,
    before: Size,
    is_mapping: bool,
    /// Elements, or keys and values by turns.
    children: Vec<NodeId>,
}

/// A node with an anchor, by which aliases name it.
#[derive(Clone, Copy)]
struct Anchored {
    node: NodeId,
    /// `None` while it is open.
    size: Option<Size>,
}

/// Builds a tree from the events of the parser.
struct Builder<'s, 'p> {
    source: &'s str,
    problems: &'p mut Problems,
    nodes: Vec<Node<'s>>,
    open: Vec<Open>,
    /// By number of the anchor, which the parser counts up.
    anchors: Vec<Option<Anchored>>,
    size: Size,
    root: Option<NodeId>,
}

impl<'s, 'p> Builder<'s, 'p> {
    fn new(source: &'s str, problems: &'p mut Problems) -> Self {
        Self {
            source,
            problems,
            nodes: Vec::new(),
            open: Vec::new(),
            anchors: Vec::new(),
            size: Size::default(),
            root: None,
        }
    }

    /// Takes all events, up to an error after which nothing can be said.
    fn build(&mut self, parser: &mut Parser<'s, StrInput<'s>>) -> Result<NodeId, Problem> {
        while let Some(event) = parser.next_event() {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            let place = self.place(&span);
            if self.problems.is_full() {
                return Err(whole(place, "too many errors to read on", "fewer errors"));
            }
            match event {
                Event::DocumentStart(..) if self.root.is_some() => {
                    return Err(whole(place, "a second document", "one document in the file"));
                }
                Event::Scalar(text, style, anchor, tag) => {
                    self.scalar(place, text, style, anchor, tag.as_deref(), &span)?;
                }
                Event::SequenceStart(_, anchor, tag) => {
                    self.start(place, anchor, tag.as_deref(), &span, false)?;
                }
                Event::MappingStart(_, anchor, tag) => {
                    self.start(place, anchor, tag.as_deref(), &span, true)?;
                }
                Event::SequenceEnd | Event::MappingEnd => self.end(),
                Event::Alias(id) => self.alias(place, id)?,
                Event::UnresolvedAlias(name) => {
                    let message = format!("alias {} names nothing", quoted(&format!("*{name}")));
                    let expected = "an anchor that comes before, such as `&NAME`";
                    self.problems.add(whole(place, message, expected));
                    let node = self.push(place, Value::Refused)?;
                    self.attach(node);
                }
                _ => {}
            }
        }
        let nothing = "a mapping with `processes`";
        self.root.ok_or_else(|| whole((0, 0), "the file is empty", nothing))
    }

    fn place(&self, span: &Span) -> (usize, usize) {
        span.byte_range().map_or((0, 0), |range| (range.start, range.end))
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let at = error.marker().byte_offset().unwrap_or(self.source.len());
        match error.kind() {
            ErrorKind::RecursionLimitExceeded => {
                let expected = format!("at most {MAX_DEPTH} levels");
                whole((at, at), "lists and mappings are nested too deeply", expected)
            }
            kind => whole((at, at), kind.to_string(), "valid YAML (JSON is YAML too)"),
        }
    }

    /// Adds a node, and to the size of the file.
    fn push(&mut self, place: (usize, usize), value: Value<'s>) -> Result<NodeId, Problem> {
        let text = match &value {
            Value::Scalar { text, .. } => offset(text.len()),
            Value::List(_) | Value::Mapping(_) | Value::Refused => 0,
        };
        self.grow(place, Size { values: 1, text })?;
        let id = self.nodes.len();
        self.nodes.push(Node { start: offset(place.0), end: offset(place.1), value });
        NodeId::try_from(id).map_err(|_| too_large(place))
    }

    fn grow(&mut self, place: (usize, usize), by: Size) -> Result<(), Problem> {
        self.size = self.size.plus(by);
        if self.size.values > MAX_VALUES || self.size.text > MAX_TEXT {
            return Err(too_large(place));
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        place: (usize, usize),
        text: Cow<'s, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        span: &Span,
    ) -> Result<(), Problem> {
        let before = self.size;
        let known = self.tag(place, tag, span, &["str", "int", "float", "bool", "null"]);
        let plain = style == ScalarStyle::Plain && known != Some("str");
        let node = self.push(place, Value::Scalar { text, plain })?;
        let size = self.size.minus(before);
        self.anchor(anchor, Anchored { node, size: Some(size) });
        self.attach(node);
        Ok(())
    }

    /// Refuses a tag but for those of `allowed`, which say what is known already; gives its name.
    fn tag(
        &mut self,
        place: (usize, usize),
        tag: Option<&Tag>,
        span: &Span,
        allowed: &'static [&'static str],
    ) -> Option<&'static str> {
        let tag = tag?;
        let known = allowed.iter().copied().find(|name| tag.is_yaml_core_schema_tag(name));
        if known.is_none() {
            let place = span.tag_span().map_or(place, |span| self.place(&span));
            let message = format!("tag {}", quoted(&tag.original()));
            self.problems.add(whole(place, message, "no tag here"));
        }
        known
    }

    fn start(
        &mut self,
        place: (usize, usize),
        anchor: usize,
        tag: Option<&Tag>,
        span: &Span,
        is_mapping: bool,
    ) -> Result<(), Problem> {
        self.tag(place, tag, span, if is_mapping { &["map"] } else { &["seq"] });
        let before = self.size;
        let node = self.push(place, Value::Refused)?;
        self.anchor(anchor, Anchored { node, size: None });
        self.open.push(Open { node, anchor, before, is_mapping, children: Vec::new() });
        Ok(())
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        let size = self.size.minus(open.before);
        let value = match open.is_mapping {
            true if self.is_unquoted_template(&open) => Value::Refused,
            true => Value::Mapping(self.mapping(&open.children)),
            false => Value::List(open.children),
        };
        self.nodes[open.node as usize].value = value;
        self.anchor(open.anchor, Anchored { node: open.node, size: Some(size) });
        self.attach(open.node);
    }

    fn anchor(&mut self, id: usize, anchored: Anchored) {
        if id == 0 {
            return;
        }
        if self.anchors.len() <= id {
            self.anchors.resize(id + 1, None);
        }
        self.anchors[id] = Some(anchored);
    }

    /// An alias is the very node that it names.
    fn alias(&mut self, place: (usize, usize), id: usize) -> Result<(), Problem> {
        let node = match self.anchors.get(id).copied().flatten() {
            Some(Anchored { node, size: Some(size) }) => {
                self.grow(place, size)?;
                node
            }
            _ => {
                let message = "the alias stands inside of what it names";
                self.problems.add(whole(place, message, "an anchor that is complete"));
                self.push(place, Value::Refused)?
            }
        };
        self.attach(node);
        Ok(())
    }

    fn attach(&mut self, node: NodeId) {
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
    }

    /// The entries of a mapping; those that cannot be used are reported and left out.
    fn mapping(&mut self, children: &[NodeId]) -> Vec<(NodeId, NodeId)> {
        let pairs = children.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        let mut entries: Vec<_> = pairs.filter(|&pair| self.is_usable(pair)).collect();
        let twice = self.twice(&entries);
        for &(first, second) in &twice {
            self.given_twice(entries[first].0, entries[second].0);
        }
        let twice: HashSet<usize> = twice.into_iter().map(|(_, second)| second).collect();
        let mut index = 0..;
        entries.retain(|_| index.next().is_none_or(|index| !twice.contains(&index)));
        entries
    }

    /// The entries whose key has come before, each with the first that has it.
    fn twice(&self, entries: &[(NodeId, NodeId)]) -> Vec<(usize, usize)> {
        let key = |entry: usize| text(&self.nodes, entries[entry].0);
        let mut by_key: Vec<usize> = (0..entries.len()).collect();
        by_key.sort_by_key(|&entry| key(entry));
        by_key
            .chunk_by(|&a, &b| key(a) == key(b))
            .flat_map(|same| same[1..].iter().map(|&second| (same[0], second)))
            .collect()
    }

    /// Reports a template that lacks its quotes: to YAML, `{{x}}` is a mapping in a mapping.
    fn is_unquoted_template(&mut self, open: &Open) -> bool {
        let start = self.nodes[open.node as usize].start as usize;
        let Some(written) = self.source.get(start..).filter(|text| text.starts_with("{{")) else {
            return false;
        };
        let length = written.find("}}").map_or(2, |end| end + 2);
        let message = format!("{} without quotes", quoted(&written[..length]));
        let expected = "quotes around it: a brace begins a mapping";
        self.problems.add(whole((start, start + length), message, expected));
        true
    }

    fn given_twice(&mut self, first: NodeId, second: NodeId) {
        let Node { start, end, .. } = self.nodes[second as usize];
        let message = format!("{} is given twice", quoted(text(&self.nodes, second)));
        let first = self.nodes[first as usize].start as usize;
        self.problems.add(Problem {
            first: Some(first),
            ..whole((start as usize, end as usize), message, "each key once")
        });
    }

    fn is_usable(&mut self, (key, value): (NodeId, NodeId)) -> bool {
        let place = |id: NodeId| {
            let Node { start, end, .. } = self.nodes[id as usize];
            (start as usize, end as usize)
        };
        if !matches!(self.nodes[key as usize].value, Value::Scalar { .. }) {
            let problem = whole(place(key), "a key that is no text", "the name of a field");
            self.problems.add(problem);
            return false;
        }
        if is_merge(&self.nodes, key) && !self.is_merged(value) {
            let problem = whole(place(value), "`<<` cannot merge this", "mappings to merge");
            self.problems.add(problem);
            return false;
        }
        true
    }

    /// Whether a value can be merged: a mapping or a list of mappings.
    fn is_merged(&self, value: NodeId) -> bool {
        let is_mapping = |&id: &NodeId| matches!(self.nodes[id as usize].value, Value::Mapping(_));
        match &self.nodes[value as usize].value {
            Value::List(values) => values.iter().all(is_mapping),
            _ => is_mapping(&value),
        }
    }
}

/// An offset or length in a file, none of which is near the limit of the type.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn too_large(place: (usize, usize)) -> Problem {
    let expected = format!("at most {MAX_VALUES} values and {MAX_TEXT} bytes of text");
    whole(place, "the file is too large, each alias counted as what it stands for", expected)
}

/// A problem of the file rather than of a field.
fn whole(
    (start, end): (usize, usize),
    message: impl Into<String>,
    expected: impl Into<String>,
) -> Problem {
    Problem {
        start,
        end,
        field: String::new(),
        message: message.into(),
        expected: expected.into(),
        first: None,
    }
}
