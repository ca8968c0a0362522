//! What holds for every address, whatever it is: which requests are answered at all, and what a browser may do with the answer.
//!
//! A browser sends requests on its user's behalf wherever a page of anybody's has it send them. So (attack 55):
//!
//! - only GET and HEAD are taken, and neither changes anything;
//! - the name that the browser was asked to connect to must be one of this host's loopback: a page whose own name was made to lead
//!   here afterwards (DNS rebinding) still says its own name;
//! - what a page of somebody else's had it ask for is refused, but for a link that a user follows to here;
//! - no answer may be kept, framed, read by other pages, or taken for another kind of thing; and in a page of ours nothing runs or
//!   is loaded but our own files.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header::{ALLOW, CACHE_CONTROL, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::{Failure, for_program};
use super::listen::ServedAt;

/// Addresses that programs ask for, which read no pages.
const PROGRAMS: [&str; 3] = ["/j/", "/logdata/", "/filedata/"];

/// What a page may do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// What every answer says.
const HEADERS: [(HeaderName, HeaderValue); 7] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (HeaderName::from_static("content-security-policy"), HeaderValue::from_static(POLICY)),
    (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
    (HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY")),
    (HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Answers a request if it may be answered.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let is_for_program = PROGRAMS.iter().any(|of| request.uri().path().starts_with(of));
    let mut response = match refuse(&request) {
        Some(refused) => refused,
        None => next.run(request).await,
    };
    if is_for_program {
        response = for_program(response);
    }
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

fn refuse(request: &Request) -> Option<Response> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "nothing can be changed here, so that only GET and HEAD are taken";
        let failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, text);
        return Some(([(ALLOW, "GET, HEAD")], failure).into_response());
    }
    let bound = request.extensions().get::<ServedAt>().map(|ServedAt(address)| address.ip());
    if !is_ours(request.uri(), request.headers(), bound) {
        let text = "the page is here under the names of this host's loopback alone, such as localhost or 127.0.0.1";
        return Some(Failure::new(StatusCode::MISDIRECTED_REQUEST, text).into_response());
    }
    if is_of_others(request.headers()) {
        let text = "a page of somebody else's had your browser ask for this";
        return Some(Failure::new(StatusCode::FORBIDDEN, text).into_response());
    }
    None
}

/// Whether a request is for a name of this host's loopback, by each word of it that says so. The port does not matter: it is another
/// one at the other end of `ssh -L`.
fn is_ours(uri: &Uri, headers: &HeaderMap, bound: Option<IpAddr>) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let is_ours = |authority: &Authority| {
        let host = authority.host();
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        !authority.as_str().contains('@')
            && (host.eq_ignore_ascii_case("localhost")
                || ip.is_ok_and(|ip| ip.is_loopback() || Some(ip) == bound))
    };
    host.as_ref().is_some_and(is_ours) && uri.authority().is_none_or(is_ours)
}

/// Whether a page of another origin asks. Other ports of this host are other origins, and whose they are nobody knows. Browsers say
/// so by themselves (Fetch Metadata); programs say nothing, and have no user whose rights they could misuse.
fn is_of_others(headers: &HeaderMap) -> bool {
    let says = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    let is_other = !matches!(says("sec-fetch-site"), None | Some(b"same-origin" | b"none"));
    let is_link =
        says("sec-fetch-mode") == Some(b"navigate") && says("sec-fetch-dest") == Some(b"document");
    is_other && !is_link
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(uri: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        is_ours(&uri.parse().unwrap(), &headers, None)
    }

    /// Attack 55: DNS rebinding.
    #[test]
    fn only_names_of_loopback_are_answered() {
        let names = ["localhost", "LocalHost:1338", "127.0.0.1", "127.0.0.1:8080", "[::1]:1338"];
        for host in names {
            assert!(ours("/", &[host]), "{host}");
        }
        let others = [
            "evil.example",
            "evil.example:1338",
            "localhost.evil.example",
            "127.0.0.1.evil.example:1338",
            "localhost@evil.example",
            "evil.example@localhost",
            "10.0.0.1:1338",
            "0.0.0.0:1338",
            "2130706433",
            "[::]:1338",
            "",
        ];
        for host in others {
            assert!(!ours("/", &[host]), "{host}");
        }
        assert!(!ours("/", &[]), "no name at all");
        assert!(!ours("/", &["localhost", "evil.example"]), "two names");
        assert!(ours("http://localhost/", &["localhost"]));
        assert!(!ours("http://evil.example/", &["localhost"]), "the first line says another one");
    }

    #[test]
    fn what_another_page_asks_for_is_refused_and_a_link_is_followed() {
        let others = |pairs: &[(&'static str, &str)]| {
            let headers: HeaderMap = pairs
                .iter()
                .map(|&(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
                .collect();
            is_of_others(&headers)
        };
        let (site, mode, dest) = ("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest");

        assert!(!others(&[]));
        assert!(!others(&[(site, "same-origin"), (mode, "cors")]));
        assert!(!others(&[(site, "none")]));
        assert!(!others(&[(site, "cross-site"), (mode, "navigate"), (dest, "document")]));
        for site_of in ["cross-site", "same-site", "anything"] {
            assert!(others(&[(site, site_of)]));
            assert!(others(&[(site, site_of), (mode, "no-cors"), (dest, "image")]));
            assert!(others(&[(site, site_of), (mode, "navigate"), (dest, "iframe")]));
            assert!(others(&[(site, site_of), (mode, "cors"), (dest, "empty")]));
        }
    }
}
