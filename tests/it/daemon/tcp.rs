//! TCP with certificates on both sides, made by openssl, which shares no code with us.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dewar::proto::observer_service_client::ObserverServiceClient;
use dewar::proto::runner_service_client::RunnerServiceClient;
use dewar::proto::{
    ExecRequest, ExecStart, GetNodeRequest, KillRequest, LaunchRequest, ListTasksRequest,
    LoseRequest, PauseRequest, RemoveRequest, ResumeRequest, SignalRequest, UpdateRequest,
    WaitRequest, exec_request,
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use super::node::Node;
use crate::support::{DEADLINE, p, task, wait_until};

/// Days after which a certificate has been over for long.
const EXPIRED: [&str; 4] = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];

/// A CA of openssl's, in a directory of its own.
pub(super) struct Authority(PathBuf);

impl Authority {
    pub(super) fn new() -> Self {
        Self::called("the authority")
    }

    fn called(subject: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dewar-ca-{}-{count}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        let authority = Self(dir);
        let dir = authority.0.display();
        let config = format!(
            "[ca]\ndefault_ca=this\n[this]\ndatabase={dir}/index\nnew_certs_dir={dir}\ncertificate={dir}/ca.pem\n\
             private_key={dir}/ca.key\nserial={dir}/serial\ncrlnumber={dir}/crlnumber\ndefault_md=sha256\ndefault_days=30\n\
             default_crl_days=30\npolicy=any\ncopy_extensions=copy\nunique_subject=no\ncrl_extensions=crl\n\
             [any]\ncommonName=optional\norganizationName=optional\n[crl]\nauthorityKeyIdentifier=keyid\n"
        );
        let files =
            [("config", config.as_str()), ("index", ""), ("serial", "01\n"), ("crlnumber", "01\n")];
        for (name, content) in files {
            fs::write(authority.path(name), content).unwrap();
        }
        let extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=keyCertSign,cRLSign"];
        authority.request("ca", &format!("/CN={subject}"), &extensions, &["-x509", "-days", "30"]);
        fs::rename(authority.path("ca.csr"), authority.path("ca.pem")).unwrap();
        authority.certify("server", "", "DNS:localhost,IP:127.0.0.1", "serverAuth", &[]);
        authority
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.0).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
    }

    fn request(&self, name: &str, subject: &str, extensions: &[&str], more: &[&str]) {
        let (key, out) = (format!("{name}.key"), format!("{name}.csr"));
        let subject = if subject.is_empty() { "/" } else { subject };
        let new = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let rest = ["-nodes", "-keyout", &key, "-out", &out, "-subj", subject];
        let extensions = extensions.iter().flat_map(|extension| ["-addext", extension]);
        let arguments: Vec<&str> =
            new.into_iter().chain(rest).chain(extensions).chain(more.iter().copied()).collect();
        self.openssl(&arguments);
    }

    /// Makes `name.pem` and `name.key`.
    fn certify(&self, name: &str, subject: &str, names: &str, usage: &str, more: &[&str]) {
        let usage = format!("extendedKeyUsage={usage}");
        let names = format!("subjectAltName={names}");
        let extensions: &[&str] = if names.ends_with('=') { &[&usage] } else { &[&usage, &names] };
        self.request(name, subject, extensions, &[]);
        let (request, out) = (format!("{name}.csr"), format!("{name}.pem"));
        let ca = ["ca", "-batch", "-notext", "-config", "config"];
        let files = ["-in", &request, "-out", &out];
        self.openssl(&[&ca[..], &files, more].concat());
    }

    /// A certificate of a client.
    pub(super) fn client(&self, name: &str, subject: &str, names: &str) {
        self.certify(name, subject, names, "clientAuth", &[]);
    }

    /// Makes `crl.pem`, with what is revoked by now.
    fn revocations(&self) {
        self.openssl(&["ca", "-config", "config", "-gencrl", "-out", "crl.pem"]);
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(super) fn identity(&self, name: &str) -> Identity {
        let text = |kind: &str| self.text(&format!("{name}.{kind}"));
        Identity::from_pem(text("pem"), text("key"))
    }

    /// Arguments of a daemon that serves those whom this authority has certified.
    pub(super) fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let arguments = [
            ("--tls-listen", "127.0.0.1:0".to_owned()),
            ("--tls-cert", path("server.pem")),
            ("--tls-key", path("server.key")),
            ("--tls-client-ca", path("ca.pem")),
            ("--tls-admin", "ops.example".to_owned()),
            ("--tls-admin", "spiffe://example/agent".to_owned()),
            ("--tls-observer", "eyes.example".to_owned()),
        ];
        arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// A daemon that serves them, with `more` arguments.
    fn node(&self, more: &[&str]) -> Node {
        let arguments = self.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Node::with(&[&arguments[..], more].concat())
    }

    /// What a client needs that has `identity`, or none.
    pub(super) fn client_config(&self, identity: Option<Identity>) -> ClientTlsConfig {
        let ca = Certificate::from_pem(self.text("ca.pem"));
        let config = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        identity.into_iter().fold(config, ClientTlsConfig::identity)
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn log(node: &Node) -> String {
    fs::read_to_string(node.scene.path("daemon.log")).unwrap()
}

/// Where the daemon listens.
fn address(node: &Node) -> SocketAddr {
    let log = log(node);
    let address = log.rsplit_once(" tls=").unwrap().1;
    address.split_whitespace().next().unwrap().parse().unwrap()
}

/// A connection with `config`, made once it is used.
pub(super) fn channel(node: &Node, config: ClientTlsConfig) -> Channel {
    let _inside = node.runtime.enter();
    let endpoint = Endpoint::from_shared(format!("https://{}", address(node))).unwrap();
    endpoint.tls_config(config).unwrap().timeout(DEADLINE).connect_lazy()
}

/// Whether the daemon talks to whoever connects with `config`.
fn ask(node: &Node, config: ClientTlsConfig) -> Result<(), Status> {
    let mut observer = ObserverServiceClient::new(channel(node, config));
    node.runtime.block_on(observer.get_node(GetNodeRequest {})).map(drop)
}

/// attack 53: by DNS name and by URI; the log has the subject.
#[test]
fn an_admin_by_certificate_controls_and_is_named_in_the_log() {
    let authority = Authority::new();
    authority.client("ops", "/O=Example/CN=an operator", "DNS:other.example,DNS:OPS.example");
    authority.client("agent", "", "URI:spiffe://example/agent");
    let mut node = authority.node(&[]);
    for name in ["ops", "agent"] {
        let id = format!("{}.{name}", node.scene.id());
        let request = LaunchRequest {
            task_id: Some(id.clone()),
            sandbox: None,
            ..node.request(&task([p("a", "true")]))
        };
        let config = authority.client_config(Some(authority.identity(name)));
        let mut runner = RunnerServiceClient::new(channel(&node, config));

        let launched = node.runtime.block_on(runner.launch(request)).unwrap().into_inner();

        assert!(launched.is_new);
        let wait = WaitRequest { task_id: id, ..WaitRequest::default() };
        assert!(node.runtime.block_on(runner.wait(wait)).unwrap().into_inner().is_reached);
    }
    let log = log(&node);
    let launches: Vec<&str> = log.lines().filter(|line| line.contains("launched")).collect();
    assert!(launches[0].contains("an operator") && launches[0].contains("O=Example"), "{log}");
    assert!(launches[1].contains("spiffe://example/agent"), "{log}");
    node.kill();
}

#[test]
fn an_observer_sees_all_and_changes_nothing() {
    let authority = Authority::new();
    authority.client("eyes", "/CN=eyes", "DNS:eyes.example");
    let mut node = authority.node(&[]);
    let gate = node.scene.gate("gate");
    node.launch(&task([p("a", gate.hold())]));
    let config = authority.client_config(Some(authority.identity("eyes")));
    let channel = channel(&node, config);
    let mut observer = ObserverServiceClient::new(channel.clone());
    let mut runner = RunnerServiceClient::new(channel);
    let task_id = node.scene.id().to_owned();
    let launch = LaunchRequest { task_id: None, ..node.request(&task([p("a", "true")])) };

    let refused = node.runtime.block_on(async {
        let id = || task_id.clone();
        let start =
            ExecStart { task_id: id(), argv: vec!["true".to_owned()], ..Default::default() };
        let start = ExecRequest { message: Some(exec_request::Message::Start(start)) };
        let listed = observer.list_tasks(ListTasksRequest::default()).await.unwrap();
        assert_eq!(listed.into_inner().tasks[0].task_id, task_id);
        [
            runner.launch(launch).await.map(drop),
            runner.kill(KillRequest { task_id: id(), ..Default::default() }).await.map(drop),
            runner.lose(LoseRequest { task_id: id(), ..Default::default() }).await.map(drop),
            runner.signal(SignalRequest { task_id: id(), ..Default::default() }).await.map(drop),
            runner.pause(PauseRequest { task_id: id() }).await.map(drop),
            runner.resume(ResumeRequest { task_id: id() }).await.map(drop),
            runner.update(UpdateRequest { task_id: id(), ..Default::default() }).await.map(drop),
            runner.remove(RemoveRequest { task_id: id(), sandbox: true }).await.map(drop),
            runner.exec(tokio_stream::iter([start])).await.map(drop),
        ]
    });

    for refused in refused {
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
    gate.open();
    let wait = WaitRequest { task_id, ..WaitRequest::default() };
    assert!(node.runtime.block_on(runner.wait(wait)).unwrap().into_inner().is_reached);
}

/// attack 53: without a certificate, with one of another authority, one that is over, that has no name with a role (its subject is
/// no name), that is not for clients, or that was revoked; and without TLS. The reason is in the log.
#[test]
fn nobody_else_is_let_in_and_the_log_says_why() {
    let authority = Authority::new();
    authority.client("good", "/CN=good", "DNS:ops.example");
    authority.client("revoked", "/CN=revoked", "DNS:ops.example");
    authority.openssl(&["ca", "-config", "config", "-revoke", "revoked.pem"]);
    authority.revocations();
    authority.certify("expired", "/CN=expired", "DNS:ops.example", "clientAuth", &EXPIRED);
    authority.client("nobody", "/CN=ops.example", "DNS:ops.example.evil.example");
    authority.client("pattern", "/CN=pattern", "DNS:*.example");
    authority.client("bare", "/CN=ops.example", "");
    // The scheme of a URI is none of a DNS name's business, nor the other way about.
    authority.client("uri", "/CN=uri", "URI:ops.example");
    authority.certify("server2", "/CN=server2", "DNS:ops.example", "serverAuth", &[]);
    let (stranger, forger) = (Authority::called("another"), Authority::new());
    stranger.client("good", "/CN=good", "DNS:ops.example");
    forger.client("good", "/CN=good", "DNS:ops.example");
    let crl = authority.path("crl.pem");
    let node = authority.node(&["--tls-client-crl", crl.to_str().unwrap()]);
    let mine = |name: &str| Some(authority.identity(name));
    let tries = [
        (None, "peer sent no certificates"),
        (Some(stranger.identity("good")), "UnknownIssuer"),
        (Some(forger.identity("good")), "BadSignature"),
        (mine("expired"), "expired"),
        (mine("revoked"), "Revoked"),
        (mine("nobody"), "ApplicationVerificationFailure"),
        (mine("pattern"), "ApplicationVerificationFailure"),
        (mine("bare"), "ApplicationVerificationFailure"),
        (mine("uri"), "ApplicationVerificationFailure"),
        (mine("server2"), "extended key usage"),
    ];
    for (identity, why) in tries {
        let before = log(&node).len();

        ask(&node, authority.client_config(identity)).unwrap_err();

        wait_until(why, || log(&node)[before..].contains(why));
    }
    assert!(log(&node).contains("a certificate has no role"), "{}", log(&node));

    let before = log(&node).len();
    let mut plain = TcpStream::connect(address(&node)).unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut told = Vec::new();
    let _ = plain.read_to_end(&mut told);
    // An alert of TLS at most, and then the end.
    assert!(told.len() <= 7, "{told:?}");
    wait_until("plaintext is told of", || log(&node)[before..].contains("turned away"));

    ask(&node, authority.client_config(mine("good"))).unwrap();
}

/// Whoever does not shake hands holds a place for ten seconds, and 32 places at most.
#[test]
fn who_says_nothing_is_left_alone_with_its_own_address() {
    let authority = Authority::new();
    authority.client("ops", "/CN=ops", "DNS:ops.example");
    let node = authority.node(&[]);
    let address = address(&node);

    let silent: Vec<_> = (0..32).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut one_more = TcpStream::connect(address).unwrap();

    one_more.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(matches!(one_more.read(&mut [0]), Ok(0) | Err(_)));
    wait_until("one too many is told of", || log(&node).contains("too many handshakes"));
    for mut silent in silent {
        silent.set_read_timeout(Some(DEADLINE)).unwrap();
        // To the end: a signal to the process of all tests interrupts a read that has a timeout, and that goes on.
        assert_eq!(silent.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
    assert!(log(&node).contains("no handshake within 10 s"), "{}", log(&node));
    ask(&node, authority.client_config(Some(authority.identity("ops")))).unwrap();
}

/// SIGHUP has the files read again; files that are of no use change nothing.
#[test]
fn certificates_are_read_again_when_asked() {
    let (authority, next) = (Authority::new(), Authority::new());
    for authority in [&authority, &next] {
        authority.client("ops", "/CN=ops", "DNS:ops.example");
    }
    let node = authority.node(&[]);
    let old = || ask(&node, authority.client_config(Some(authority.identity("ops"))));
    let read_again = |told: &str| {
        let before = log(&node).len();
        let daemon = nix::unistd::Pid::from_raw(node.daemon.id().cast_signed());
        nix::sys::signal::kill(daemon, nix::sys::signal::SIGHUP).unwrap();
        wait_until(told, || log(&node)[before..].contains(told));
    };
    let before = authority.text("ca.pem");

    fs::write(authority.path("ca.pem"), "nothing\n").unwrap();
    read_again("certificates stay as they are");
    fs::write(authority.path("ca.pem"), &before).unwrap();
    old().unwrap();

    fs::write(authority.path("ca.pem"), next.text("ca.pem")).unwrap();
    read_again("read certificates again");
    fs::write(authority.path("ca.pem"), &before).unwrap();
    old().unwrap_err();
    let config = authority.client_config(Some(next.identity("ops")));
    ask(&node, config).unwrap();
}

/// What keeps a daemon from starting is told by the name of the file and what it should be; nothing is served then.
#[test]
fn what_is_missing_or_open_to_others_is_refused_by_name() {
    let authority = Authority::new();
    let scene = crate::support::Scene::new();
    let arguments = authority.arguments();
    let refused = |arguments: &[String]| {
        let mut command = scene.command(["serve", "--root"]);
        command.arg(scene.root()).arg("--address").arg(scene.path("dewar.sock")).args(arguments);
        let told = scene.output(command);
        assert!(!scene.path("dewar.sock").exists(), "{told:?}");
        (told.status.unwrap(), told.stderr)
    };
    // Each flag and its value left out in turn.
    for (at, flag) in
        ["--tls-listen", "--tls-cert", "--tls-key", "--tls-client-ca"].iter().enumerate()
    {
        let without = [&arguments[..2 * at], &arguments[2 * at + 2..]].concat();
        let (status, told) = refused(&without);
        assert_eq!(status, 2, "{told}");
        assert!(told.contains(flag), "{flag}: {told}");
    }
    let (status, told) = refused(&arguments[..8]);
    assert_eq!(status, 2);
    assert!(told.contains("--tls-admin") && told.contains("--tls-observer"), "{told}");

    let mode = |name: &str, mode| {
        fs::set_permissions(authority.path(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let says = |name: &str, why: &str| {
        let (status, told) = refused(&arguments);
        let path = authority.path(name);
        assert_eq!(status, 5, "{told}");
        assert!(told.contains(path.to_str().unwrap()) && told.contains(why), "{why}: {told}");
    };
    mode("server.key", 0o644);
    says("server.key", "its mode is 0644; expected that only");
    mode("server.key", 0o600);
    mode("ca.pem", 0o666);
    says("ca.pem", "its mode is 0666; expected that only its owner may write it");
    mode("ca.pem", 0o644);
    let key = authority.text("server.key");
    fs::write(authority.path("server.key"), authority.text("ca.key")).unwrap();
    says("server.key", "");
    fs::write(authority.path("server.key"), "nothing\n").unwrap();
    says("server.key", "expected a private key as PEM");
    fs::write(authority.path("server.key"), key).unwrap();
    fs::remove_file(authority.path("server.pem")).unwrap();
    says("server.pem", "No such file");
    fs::create_dir(authority.path("server.pem")).unwrap();
    says("server.pem", "it is no file; expected a regular file");
    fs::write(authority.path("ca.pem"), "nothing\n").unwrap();
    says("ca.pem", "there is none; expected certificates as PEM");
}

/// `dewar` itself, by the certificate that its environment names.
#[test]
fn commands_ask_over_tcp_as_whom_their_certificate_says() {
    let authority = Authority::new();
    authority.client("ops", "/CN=ops", "DNS:ops.example");
    authority.client("eyes", "/CN=eyes", "DNS:eyes.example");
    let node = authority.node(&[]);
    let file = node.scene.file("task.json", task([p("a", "echo here; sleep 600")]).text());
    let told = |name: &str, arguments: &[&str]| {
        let mut command = node.scene.command(arguments);
        command.env("DEWAR_ADDRESS", format!("https://{}", address(&node)));
        command.env("DEWAR_TLS_CA", authority.path("ca.pem"));
        command.env("DEWAR_TLS_CERT", authority.path(&format!("{name}.pem")));
        command.env("DEWAR_TLS_KEY", authority.path(&format!("{name}.key")));
        node.scene.output(command)
    };
    let id = node.scene.id();

    let launched = told("ops", &["launch", file.to_str().unwrap(), "--task-id", id]);
    assert_eq!((launched.status, launched.stdout), (Some(0), format!("{id}\n")));
    wait_until("it has printed", || told("eyes", &["logs", id]).stdout == "here\n");
    assert_eq!(told("ops", &["exec", id, "--", "echo", "x"]).stdout, "x\n");
    assert_eq!(told("ops", &["health"]).status, Some(0));
    let refused = told("eyes", &["kill", id]);
    assert_eq!(refused.status, Some(5), "{refused:?}");
    assert!(refused.stderr.contains("observer"), "{}", refused.stderr);
    let unset = told("none", &["status"]);
    assert_eq!(unset.status, Some(5), "{unset:?}");
    assert!(unset.stderr.contains("DEWAR_TLS_CERT: "), "{}", unset.stderr);
    assert_eq!(told("ops", &["kill", id, "--wait", "0s"]).status, Some(0));
    assert_eq!(told("ops", &["wait", id]).status, Some(3));
}
