//! The client's span of a call, if the environment asks for traces.

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanKind};
use tokio::runtime::Runtime;
use tonic::{Code, Request, Response, Status};

use crate::trace::{Begun, TraceError, Traces, code, context, of_call, pass_on};

/// A call that is traced, or is not: then nothing of this does anything.
#[derive(Debug)]
pub struct Call(Option<Inner>);

#[derive(Debug)]
struct Inner {
    traces: Traces,
    span: Option<Begun>,
    /// Sends spans. Not that of the connection: whoever drops that waits for the resolution of names, which may take long.
    runtime: Runtime,
}

impl Call {
    /// Begins the span of a call of `method`, beneath what `TRACEPARENT` and `TRACESTATE` say, if the environment asks for it.
    ///
    /// # Errors
    ///
    /// [`TraceError`]: it asks for what cannot be done.
    pub fn begin(method: &'static str) -> Result<Self, TraceError> {
        if !Traces::are_asked_for()? {
            return Ok(Self::untraced());
        }
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().map_err(TraceError::Thread)?;
        let within = runtime.enter();
        let traces = Traces::of_environment("dewar-cli")?;
        drop(within);
        Ok(Self(traces.map(|traces| {
            let variable = |name| std::env::var(name).ok();
            let (parent, state) = (variable("TRACEPARENT"), variable("TRACESTATE"));
            let parent: SpanContext = context(parent.as_deref(), state.as_deref());
            let span = traces.begin(method, SpanKind::Client, &parent, of_call(method));
            Inner { traces, span: Some(span), runtime }
        })))
    }

    /// One of which nothing is told.
    pub fn untraced() -> Self {
        Self(None)
    }

    /// Tells the daemon which trace this is.
    pub fn tell<T>(&self, request: &mut Request<T>) {
        if let Some(span) = self.0.as_ref().and_then(|inner| inner.span.as_ref()) {
            pass_on(span.context(), request.metadata_mut());
        }
    }

    /// Ends the span: the daemon has answered.
    pub fn answered<T>(&mut self, answer: &Result<Response<T>, Status>) {
        let Some(mut span) = self.0.as_mut().and_then(|inner| inner.span.take()) else { return };
        let said = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        span.add(KeyValue::new("rpc.response.status_code", code(said)));
        if said != Code::Ok {
            span.fail(code(said));
        }
    }
}

impl Drop for Call {
    /// Sends the span; takes [`crate::trace::FLUSH`] at most.
    fn drop(&mut self) {
        if let Some(Inner { traces, span, runtime }) = self.0.take() {
            drop(span);
            runtime.block_on(traces.flush());
            runtime.shutdown_background();
        }
    }
}
