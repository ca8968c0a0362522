//! Traces for OpenTelemetry: spans that go to a collector over OTLP, and the W3C trace context between programs.
//!
//! **Off by default.** Without [`ENDPOINT`] or [`TRACES_ENDPOINT`] in the environment nothing of it exists: no exporter, no queue, no
//! connection; docs/tracing.md has all variables.
//!
//! **Nobody waits for a collector.** A span that ends goes into a queue of at most [`QUEUE`]; one that has no room is dropped, counted
//! and, once a minute, logged. A user has no more in it than is left free ([`Shares`]), so that nobody's flood takes the room of
//! others. One task sends what is queued, and is asleep while nothing is. The end of the program waits for it
//! for [`FLUSH`] at most.
//!
//! **A trace context is a stranger's word.** It is taken as far as it has the exact form of W3C, and a state of at most [`STATE`] bytes; all
//! that it can do is to name the trace and to say whether it is recorded.
#![allow(clippy::disallowed_methods, reason = "reads the environment and certificates, sends")]

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::getuid;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status as SpanStatus, TraceContextExt, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, Key, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::checkpoint::IoError;

/// Where the collector of all that OpenTelemetry knows of listens: a URL.
pub const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// That of traces alone, which goes before it.
pub const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// Spans that wait to be sent, at most: below 2 kB each.
pub const QUEUE: usize = 2048;
/// Spans that are sent at once, at most.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const LINGER: Duration = Duration::from_millis(200);
/// How long one batch may take, whatever the collector says and the environment allows.
const EXPORT: Duration = Duration::from_secs(30);
/// How long the end of the program waits for what is queued.
pub const FLUSH: Duration = Duration::from_secs(1);
/// Time between two lines in the log about spans that are dropped.
const QUIET: Duration = Duration::from_secs(60);
/// Most bytes of a `tracestate`: what W3C has everybody pass on.
pub const STATE: usize = 512;
/// Most characters of an error that are logged.
const ERROR: usize = 200;

/// Why there are no traces, although the environment asks for them.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A variable has a value that nothing can be made of.
    #[error("{variable}={value:?}: expected {expected}")]
    Variable {
        /// Its name.
        variable: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A certificate or key cannot be read.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The exporter refuses what the environment says.
    #[error("traces: {0}")]
    Exporter(String),
    /// Nobody could send them.
    #[error("start a thread")]
    Thread(#[source] std::io::Error),
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    endpoint: String,
    /// Trusted to say who the collector is.
    authority: Option<PathBuf>,
    /// Our own certificate and its key.
    identity: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn of_environment() -> Result<Option<Self>, TraceError> {
        Self::of(|variable| std::env::var(variable).ok())
    }

    /// What the environment asks for; `None`: nothing.
    fn of(get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TraceError> {
        // An empty variable is as good as none: OpenTelemetry, "Environment Variable Specification".
        let get = |variable: &'static str| get(variable).filter(|value| !value.is_empty());
        let named = |variables: &[&'static str]| {
            variables.iter().find_map(|variable| Some((*variable, get(variable)?)))
        };
        let Some((variable, endpoint)) = named(&[TRACES_ENDPOINT, ENDPOINT]) else {
            return Ok(None);
        };
        let is_off = get("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"));
        match get("OTEL_TRACES_EXPORTER").as_deref() {
            _ if is_off => return Ok(None),
            Some("none") => return Ok(None),
            None | Some("otlp") => {}
            Some(other) => {
                let (variable, expected) = ("OTEL_TRACES_EXPORTER", "otlp or none");
                return Err(TraceError::Variable { variable, value: other.to_owned(), expected });
            }
        }
        let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
        if let Some((variable, value)) = named(&protocols)
            && value != "grpc"
        {
            let expected = "grpc, the one that dewar speaks";
            return Err(TraceError::Variable { variable, value, expected });
        }
        let ratio = |text: &String| text.parse().is_ok_and(|ratio| (0.0..=1.0).contains(&ratio));
        let is_ratio = match get("OTEL_TRACES_SAMPLER").as_deref() {
            None | Some("always_on" | "always_off") => false,
            Some("parentbased_always_on" | "parentbased_always_off") => false,
            Some("traceidratio" | "parentbased_traceidratio") => true,
            Some(other) => {
                let (variable, value) = ("OTEL_TRACES_SAMPLER", other.to_owned());
                let expected =
                    "always_on, always_off or traceidratio, or one of them after parentbased_";
                return Err(TraceError::Variable { variable, value, expected });
            }
        };
        let share = get("OTEL_TRACES_SAMPLER_ARG");
        if is_ratio && !share.as_ref().is_some_and(ratio) {
            let (variable, expected) = ("OTEL_TRACES_SAMPLER_ARG", "a number from 0 to 1");
            let value = share.unwrap_or_default();
            return Err(TraceError::Variable { variable, value, expected });
        }
        let timeouts = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
        if let Some((variable, value)) = named(&timeouts)
            && value.parse::<u64>().is_err()
        {
            return Err(TraceError::Variable { variable, value, expected: "milliseconds" });
        }
        let path = |variables: &[&'static str]| named(variables).map(|(_, path)| path.into());
        let authority =
            path(&["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]);
        let certificate = path(&[
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        ]);
        let key = path(&["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"]);
        let expected = match endpoint.split_once("://") {
            Some(("http", _)) => None,
            Some(("https", _)) if authority.is_some() => None,
            Some(("https", _)) => Some(
                "OTEL_EXPORTER_OTLP_CERTIFICATE beside it: dewar trusts no authority by itself",
            ),
            _ => Some("http://HOST:PORT or https://HOST:PORT"),
        };
        match expected {
            Some(expected) => Err(TraceError::Variable { variable, value: endpoint, expected }),
            None => Ok(Some(Self { endpoint, authority, identity: certificate.zip(key) })),
        }
    }

    fn exporter(&self) -> Result<SpanExporter, TraceError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&self.endpoint);
        let exporter = match self.tls()? {
            Some(tls) => exporter.with_tls_config(tls),
            None => exporter,
        };
        exporter.build().map_err(|error| TraceError::Exporter(error.to_string()))
    }

    fn tls(&self) -> Result<Option<ClientTlsConfig>, TraceError> {
        if !self.endpoint.starts_with("https://") {
            return Ok(None);
        }
        let read = |path: &PathBuf| {
            let failed = |source| IoError { call: "read", path: path.clone(), source };
            std::fs::read(path).map_err(failed)
        };
        let mut tls = ClientTlsConfig::new();
        if let Some(authority) = &self.authority {
            tls = tls.ca_certificate(Certificate::from_pem(read(authority)?));
        }
        if let Some((certificate, key)) = &self.identity {
            tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        Ok(Some(tls))
    }
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
    /// When the log last told of some that were dropped, and how many there were by then.
    told: Mutex<Option<(Instant, u64)>>,
}

impl Counts {
    /// Counts spans that nobody will see, and says so if it was not said just now.
    fn lose(&self, spans: u64, why: &str) {
        let dropped = self.dropped.fetch_add(spans, Ordering::Relaxed) + spans;
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match *told {
            Some((when, _)) if when.elapsed() < QUIET => return,
            Some((_, before)) => before,
            None => 0,
        };
        *told = Some((Instant::now(), dropped));
        let why: String = why.chars().take(ERROR).collect();
        tracing::warn!(spans = dropped.saturating_sub(before), why, "spans were dropped");
    }
}

/// How many spans of each user are queued.
///
/// A user may have as many as are left free: half of the queue if there is nobody else, a third if there are two who want more than
/// that, and so on. Some are left then for one more.
#[derive(Debug, Default)]
struct Shares(Mutex<Queued>);

#[derive(Debug, Default)]
struct Queued {
    all: usize,
    /// Of users who have any.
    of: HashMap<u32, usize>,
}

impl Shares {
    fn queued(&self) -> MutexGuard<'_, Queued> {
        // No statement leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for one more span of a user; says whether there is some.
    fn take(&self, user: u32) -> bool {
        let mut queued = self.queued();
        let its_own = queued.of.get(&user).copied().unwrap_or_default();
        let has_room = its_own < QUEUE - queued.all;
        if has_room {
            queued.of.insert(user, its_own + 1);
            queued.all += 1;
        }
        has_room
    }

    /// Gives the room of a span of a user back.
    fn give(&self, user: u32) {
        let mut queued = self.queued();
        if let Entry::Occupied(mut its_own) = queued.of.entry(user) {
            *its_own.get_mut() -= 1;
            if *its_own.get() == 0 {
                its_own.remove();
            }
            queued.all -= 1;
        }
    }
}

thread_local! {
    /// Whose span is ending here: the library tells [`Queue`] all else of it.
    static ENDING: Cell<u32> = const { Cell::new(0) };
}

/// What goes through the queue.
#[derive(Debug)]
enum Message {
    /// A span, and whose it is.
    Span(u32, Box<SpanData>),
    /// Nobody waits any more once this is dropped.
    Flush(oneshot::Sender<()>),
}

/// The near end of the queue.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<Message>,
    counts: Arc<Counts>,
    shares: Arc<Shares>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let user = ENDING.get();
        if !span.span_context.is_sampled() {
        } else if !self.shares.take(user) {
            self.counts.lose(1, &format!("the queue has as many as it takes of user {user}"));
        } else if self.sender.try_send(Message::Span(user, Box::new(span))).is_err() {
            self.shares.give(user);
            self.counts.lose(1, "the queue is full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what is queued, until nothing will be any more.
async fn send(
    exporter: SpanExporter,
    mut queue: mpsc::Receiver<Message>,
    counts: Arc<Counts>,
    shares: Arc<Shares>,
) {
    while let Some(first) = queue.recv().await {
        let deadline = tokio::time::Instant::now() + LINGER;
        let (mut batch, mut waits, mut next) = (Vec::new(), None, Some(first));
        while let Some(message) = next.take() {
            match message {
                Message::Span(user, span) => {
                    shares.give(user);
                    batch.push(*span);
                }
                Message::Flush(whose) => waits = Some(whose),
            }
            if waits.is_none() && batch.len() < BATCH {
                next = timeout_at(deadline, queue.recv()).await.ok().flatten();
            }
        }
        let spans = batch.len() as u64;
        if spans > 0 {
            match tokio::time::timeout(EXPORT, exporter.export(batch)).await {
                Ok(Ok(())) => drop(counts.sent.fetch_add(spans, Ordering::Relaxed)),
                Ok(Err(error)) => counts.lose(spans, &error.to_string()),
                Err(_) => counts.lose(spans, "the collector does not answer"),
            }
        }
        drop(waits);
    }
}

/// Makes spans of a user, and has them sent.
#[derive(Debug, Clone)]
pub struct Traces {
    user: u32,
    tracer: SdkTracer,
    sender: mpsc::Sender<Message>,
    counts: Arc<Counts>,
    /// Ends with the last of these.
    _provider: SdkTracerProvider,
}

/// A span that ends once it is told to, or dropped.
#[derive(Debug)]
pub struct Begun {
    span: Span,
    user: u32,
}

/// A span of which all is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// What it is of: one of few.
    pub name: &'static str,
    /// When that began, and ended, nanoseconds since 1970.
    pub time: (i64, i64),
    /// What is known of it.
    pub attributes: Vec<KeyValue>,
    /// What went wrong, in a word, if something did.
    pub error: Option<&'static str>,
}

impl Traces {
    /// As the environment asks for them; `None`: it does not. Their spans are those of `service`, unless the environment has another name,
    /// and of our own user.
    ///
    /// Within a runtime: that sends them.
    ///
    /// # Errors
    ///
    /// [`TraceError`]: it asks for what cannot be done.
    pub fn of_environment(service: &'static str) -> Result<Option<Self>, TraceError> {
        Target::of_environment()?.map(|target| Self::to(&target, service)).transpose()
    }

    /// Whether the environment asks for them.
    ///
    /// # Errors
    ///
    /// [`TraceError`]: it asks for what cannot be done.
    pub fn are_asked_for() -> Result<bool, TraceError> {
        Ok(Target::of_environment()?.is_some())
    }

    fn to(target: &Target, service: &'static str) -> Result<Self, TraceError> {
        let mut exporter = target.exporter()?;
        let resource = resource(service);
        exporter.set_resource(&resource);
        let counts = Arc::new(Counts::default());
        let shares = Arc::new(Shares::default());
        let (sender, queue) = mpsc::channel(QUEUE);
        tokio::spawn(send(exporter, queue, counts.clone(), shares.clone()));
        let near = Queue { sender: sender.clone(), counts: counts.clone(), shares };
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(near).build();
        let (user, tracer) = (getuid().as_raw(), provider.tracer("dewar"));
        Ok(Self { user, tracer, sender, counts, _provider: provider })
    }

    /// The same for spans of another user.
    pub fn of_user(&self, user: u32) -> Self {
        Self { user, ..self.clone() }
    }

    /// Begins a span now, beneath `parent`, or at the top of a trace of its own if that is none.
    pub fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        parent: &SpanContext,
        attributes: Vec<KeyValue>,
    ) -> Begun {
        let span = self.tracer.span_builder(name).with_kind(kind).with_attributes(attributes);
        self.begun(span, parent)
    }

    fn begun(&self, span: SpanBuilder, parent: &SpanContext) -> Begun {
        Begun { span: span.start_with_context(&self.tracer, &beneath(parent)), user: self.user }
    }

    /// Tells of a span that is over; others may be beneath it.
    pub fn tell(&self, past: Past, parent: &SpanContext) -> SpanContext {
        let Past { name, time: (start, end), attributes, error } = past;
        let span = self.tracer.span_builder(name).with_attributes(attributes);
        let span = span.with_start_time(at(start));
        let mut span = self.begun(span, parent);
        if let Some(error) = error {
            span.fail(error);
        }
        let context = span.context().clone();
        span.end(Some(at(end.max(start))));
        context
    }

    /// Counts a part of a trace that nobody will see.
    pub fn leave_out(&self, why: &str) {
        self.counts.lose(1, why);
    }

    /// Spans that a collector has taken, and spans that were dropped.
    pub fn counts(&self) -> (u64, u64) {
        let Counts { sent, dropped, .. } = &*self.counts;
        (sent.load(Ordering::Relaxed), dropped.load(Ordering::Relaxed))
    }

    /// Waits until what was told so far is sent, [`FLUSH`] at most.
    pub async fn flush(&self) {
        let (told, heard) = oneshot::channel();
        let flushed = async {
            if self.sender.send(Message::Flush(told)).await.is_ok() {
                let _ = heard.await;
            }
        };
        if tokio::time::timeout(FLUSH, flushed).await.is_err() {
            tracing::warn!("the collector does not answer; spans that were not sent are lost");
        }
    }
}

impl Begun {
    /// What other spans are beneath.
    pub fn context(&self) -> &SpanContext {
        self.span.span_context()
    }

    /// Adds what became known.
    pub fn add(&mut self, attribute: KeyValue) {
        self.span.set_attribute(attribute);
    }

    /// Notes what went wrong, in a word.
    pub fn fail(&mut self, error: impl Into<std::borrow::Cow<'static, str>>) {
        let error = error.into();
        self.span.set_attribute(KeyValue::new("error.type", error.clone()));
        self.span.set_status(SpanStatus::error(error));
    }
}

impl Begun {
    /// Ends it, if it has not ended, at a time or now.
    fn end(&mut self, at: Option<SystemTime>) {
        ENDING.set(self.user);
        match at {
            Some(at) => self.span.end_with_timestamp(at),
            None => self.span.end(),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn at(unix_nanos: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(unix_nanos.try_into().unwrap_or(0))
}

/// What is beneath nothing begins a trace: to the sampler a parent that is none would be one that is not recorded.
fn beneath(parent: &SpanContext) -> Context {
    match parent.is_valid() {
        true => Context::new().with_remote_span_context(parent.clone()),
        false => Context::new(),
    }
}

/// What all spans are of.
fn resource(service: &'static str) -> Resource {
    let known = Resource::builder().build();
    let name = known.get_ref(&Key::new("service.name")).map(|name| name.as_str().into_owned());
    // What the library calls a program that nobody has named.
    let is_named = name.is_some_and(|name| !name.starts_with("unknown_service"));
    let ours = [
        ("service.name", service.to_owned(), is_named),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned(), false),
        ("host.name", crate::request::hostname(), false),
    ];
    let ours = ours.into_iter().filter(|(key, _, is_known)| {
        !is_known && (*key == "service.name" || known.get_ref(&Key::new(*key)).is_none())
    });
    Resource::builder()
        .with_attributes(ours.map(|(key, value, _)| KeyValue::new(key, value)))
        .build()
}

/// The trace that a caller is in; [`SpanContext::NONE`]: it says nothing, or something that is not to be relied on.
pub fn caller(metadata: &MetadataMap) -> SpanContext {
    let only = |name| {
        let mut values = metadata.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())?.to_str().ok()
    };
    context(only("traceparent"), only("tracestate"))
}

/// The context that is written so.
pub fn context(parent: Option<&str>, state: Option<&str>) -> SpanContext {
    let Some(parent) = parent.filter(|parent| is_traceparent(parent)) else {
        return SpanContext::NONE;
    };
    let state = state.filter(|state| state.len() <= STATE);
    let written: HashMap<String, String> = [("traceparent", Some(parent)), ("tracestate", state)]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &written);
    context.span().span_context().clone()
}

/// Whether this has the form of W3C Trace Context, level 1, section 3.2: `00-TRACE-SPAN-FLAGS` in small hexadecimal digits. Later
/// versions may add to it, and are taken for this one; what they add is not told to anybody.
fn is_traceparent(text: &str) -> bool {
    const LENGTH: usize = 55;
    let bytes = text.as_bytes();
    let is_longer = |bytes: &[u8]| bytes[LENGTH] == b'-' && !bytes.starts_with(b"00");
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    match bytes.len() {
        LENGTH => {}
        length if length > LENGTH && length <= STATE && is_longer(bytes) => {}
        _ => return false,
    }
    !bytes.starts_with(b"ff")
        && bytes[..LENGTH].iter().enumerate().all(|(place, &byte)| match place {
            2 | 35 | 52 => byte == b'-',
            _ => is_hex(byte),
        })
}

/// Tells whoever gets `metadata` what it is beneath.
pub fn pass_on(context: &SpanContext, metadata: &mut MetadataMap) {
    let mut written = HashMap::new();
    TraceContextPropagator::new().inject_context(&beneath(context), &mut written);
    for (name, value) in written {
        let name = MetadataKey::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value), false) = (name, value.parse(), value.is_empty()) {
            metadata.insert(name, value);
        }
    }
}

/// The attributes of a call, as the semantic conventions for gRPC have them.
pub fn of_call(method: &'static str) -> Vec<KeyValue> {
    vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", method)]
}

/// A status as the conventions write it: `NOT_FOUND`.
pub fn code(code: tonic::Code) -> &'static str {
    use tonic::Code as C;
    match code {
        C::Ok => "OK",
        C::Cancelled => "CANCELLED",
        C::Unknown => "UNKNOWN",
        C::InvalidArgument => "INVALID_ARGUMENT",
        C::DeadlineExceeded => "DEADLINE_EXCEEDED",
        C::NotFound => "NOT_FOUND",
        C::AlreadyExists => "ALREADY_EXISTS",
        C::PermissionDenied => "PERMISSION_DENIED",
        C::ResourceExhausted => "RESOURCE_EXHAUSTED",
        C::FailedPrecondition => "FAILED_PRECONDITION",
        C::Aborted => "ABORTED",
        C::OutOfRange => "OUT_OF_RANGE",
        C::Unimplemented => "UNIMPLEMENTED",
        C::Internal => "INTERNAL",
        C::Unavailable => "UNAVAILABLE",
        C::DataLoss => "DATA_LOSS",
        C::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn target(variables: &[(&str, &str)]) -> Result<Option<Target>, TraceError> {
        Target::of(|name| {
            let found = variables.iter().find(|(of, _)| *of == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn only_an_endpoint_turns_traces_on() {
        let on = |variables: &[(&str, &str)]| target(variables).unwrap().map(|of| of.endpoint);
        for off in [
            &[][..],
            &[(ENDPOINT, "")],
            &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "always_on")],
            &[("OTEL_TRACES_EXPORTER", "otlp"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            &[(ENDPOINT, "http://c:4317"), ("OTEL_SDK_DISABLED", "TRUE")],
            &[(ENDPOINT, "http://c:4317"), ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert_eq!(on(off), None, "{off:?}");
        }

        let both = [(ENDPOINT, "http://all:4317"), (TRACES_ENDPOINT, "http://traces:4317")];
        assert_eq!(on(&both[..1]).as_deref(), Some("http://all:4317"));
        assert_eq!(on(&both).as_deref(), Some("http://traces:4317"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_the_name_of_its_variable() {
        let refused = |more: &[(&str, &str)]| target(more).unwrap_err().to_string();

        assert_eq!(
            refused(&[(ENDPOINT, "collector:4317")]),
            r#"OTEL_EXPORTER_OTLP_ENDPOINT="collector:4317": expected http://HOST:PORT or https://HOST:PORT"#
        );
        let http = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
        assert_eq!(
            refused(&[(ENDPOINT, "http://c:4318"), http]),
            r#"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf": expected grpc, the one that dewar speaks"#
        );
        assert!(
            refused(&[(ENDPOINT, "http://c"), ("OTEL_TRACES_EXPORTER", "zipkin")])
                .starts_with(r#"OTEL_TRACES_EXPORTER="zipkin""#)
        );
        let on = (ENDPOINT, "http://c");
        for (variable, value, more) in [
            ("OTEL_TRACES_SAMPLER", "sometimes", ("", "")),
            ("OTEL_TRACES_SAMPLER_ARG", "", ("OTEL_TRACES_SAMPLER", "traceidratio")),
            ("OTEL_TRACES_SAMPLER_ARG", "2", ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", ("", "")),
        ] {
            let told = refused(&[on, (variable, value), more]);
            assert!(told.starts_with(&format!("{variable}={value:?}: expected ")), "{told}");
        }
        let tenth = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
        assert!(target(&[on, tenth[0], tenth[1]]).unwrap().is_some());
        let https = (TRACES_ENDPOINT, "https://c:4317");
        assert!(refused(&[https]).contains("OTEL_EXPORTER_OTLP_CERTIFICATE"));
        let certified = [https, ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem")];
        assert_eq!(target(&certified).unwrap().unwrap().authority, Some("/ca.pem".into()));
    }

    /// What is not exactly of the form begins a trace of its own, as if nothing had been said.
    #[test]
    fn a_trace_context_is_taken_only_in_its_exact_form() {
        let later = format!("cc{}-what-later-versions-add", &PARENT[2..]);
        for good in [PARENT, &later] {
            let context = context(Some(good), None);
            assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
            assert!(context.is_sampled() && context.is_remote());
        }
        let huge = format!("cc{}-{}", &PARENT[2..], "0".repeat(STATE));
        for bad in [
            "",
            "00",
            "00-1-1-01",
            &PARENT.to_uppercase(),
            &format!("{PARENT}-more"),
            &format!(" {PARENT}"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen("00", "+0", 1),
            &PARENT.replace("b7ad6b7169203331", "0000000000000000"),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace('a', "ä"),
            &huge,
        ] {
            assert_eq!(context(Some(bad), Some("a=b")), SpanContext::NONE, "{bad:?}");
        }
    }

    #[test]
    fn a_state_is_kept_if_it_is_short_and_a_caller_has_one_parent() {
        let state = |state: &str| context(Some(PARENT), Some(state)).trace_state().header();
        assert_eq!(state("a=1,b=2"), "a=1,b=2");
        assert_eq!(state(&format!("a={}", "x".repeat(STATE))), "");
        assert_eq!(state("no state"), "");

        let mut metadata = MetadataMap::new();
        pass_on(&context(Some(PARENT), Some("a=1")), &mut metadata);
        assert_eq!(metadata.get("traceparent").unwrap(), PARENT);
        assert_eq!(caller(&metadata).trace_state().header(), "a=1");
        metadata.append("traceparent", PARENT.parse().unwrap());
        assert_eq!(caller(&metadata), SpanContext::NONE);
    }

    /// Memory stays bounded, who tells does not wait, and what was not sent is counted.
    #[test]
    fn what_a_silent_collector_does_not_take_is_dropped_and_counted() {
        const TOLD: u64 = 5 * QUEUE as u64;
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let target = target(&[(ENDPOINT, &endpoint)]).unwrap().unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let traces = runtime.block_on(async { Traces::to(&target, "test") }).unwrap();

        for _ in 0..TOLD {
            let past = Past { name: "past", time: (1, 2), attributes: Vec::new(), error: None };
            traces.tell(past, &SpanContext::NONE);
        }
        let (sent, dropped) = traces.counts();
        let begun = Instant::now();
        runtime.block_on(traces.flush());

        assert_eq!(sent, 0);
        assert!(dropped >= TOLD - (QUEUE + BATCH) as u64 && dropped < TOLD, "{dropped}");
        assert!(begun.elapsed() < EXPORT / 2, "the end waits for the collector");
        runtime.shutdown_background();
    }

    #[test]
    fn a_user_has_as_much_of_the_queue_as_is_left_free() {
        let shares = Shares::default();
        let flood =
            |user| std::iter::repeat_with(|| shares.take(user)).take_while(|&is| is).count();

        assert_eq!(flood(1), QUEUE / 2);
        assert_eq!(flood(2), QUEUE / 4);
        assert_eq!((flood(1), flood(2), flood(3)), (0, 0, QUEUE / 8));
        (0..QUEUE / 2).for_each(|_| shares.give(1));
        assert_eq!((flood(4), flood(1)), (QUEUE * 5 / 16, QUEUE * 5 / 32));
        (1..=4).for_each(|user| (0..QUEUE).for_each(|_| shares.give(user)));
        let queued = shares.queued();
        assert_eq!((queued.all, queued.of.len()), (0, 0), "nothing is kept of who has none");
    }

    /// Whose a span is counts, not who came first.
    #[test]
    fn a_flood_of_some_users_pushes_out_no_span_of_another() {
        const LAUNCH: usize = 20;
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", silent.local_addr().unwrap());
        let target = target(&[(ENDPOINT, &endpoint)]).unwrap().unwrap();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let traces = runtime.block_on(async { Traces::to(&target, "test") }).unwrap();
        let begin = |traces: &Traces| {
            drop(traces.begin("x", SpanKind::Server, &SpanContext::NONE, Vec::new()));
        };
        let past = Past { name: "past", time: (1, 2), attributes: Vec::new(), error: None };

        for user in [1001, 1002] {
            let flooding = traces.of_user(user);
            (0..2 * QUEUE).for_each(|_| begin(&flooding));
        }
        let (_, dropped) = traces.counts();
        let other = traces.of_user(1003);
        for _ in 0..LAUNCH {
            begin(&other);
            other.tell(past.clone(), &SpanContext::NONE);
        }

        assert!(dropped > 0);
        assert_eq!(traces.counts(), (0, dropped));
        runtime.shutdown_background();
    }

    #[test]
    fn what_the_caller_does_not_record_is_not_told() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let target = target(&[(ENDPOINT, "http://127.0.0.1:1")]).unwrap().unwrap();
        let traces = runtime.block_on(async { Traces::to(&target, "test") }).unwrap();
        let begin = |parent: &SpanContext| traces.begin("x", SpanKind::Server, parent, Vec::new());

        assert!(begin(&SpanContext::NONE).context().is_sampled());
        assert!(begin(&context(Some(PARENT), None)).context().is_sampled());
        let unsampled = context(Some(&PARENT.replace("-01", "-00")), None);
        let begun = begin(&unsampled);
        assert!(!begun.context().is_sampled());
        assert_eq!(begun.context().trace_id(), unsampled.trace_id());
        runtime.shutdown_background();
    }
}
