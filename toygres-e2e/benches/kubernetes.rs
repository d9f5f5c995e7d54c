//! How fast instances on Kubernetes are, against `kubectl apply` and `kubectl delete` of the same
//! objects in the same run: `cargo bench -p toygres-e2e --bench kubernetes`, on the cluster of
//! KUBECONFIG with TOYGRES_TEST_KUBERNETES=1.
//!
//! The objects by hand are those of an instance that toygres made, under another name, in a namespace
//! of their own, and labelled as not toygres's. Both ways end when a client has an answer over TLS
//! from the Service's address, or when everything is gone; rounds of both alternate and medians are
//! compared. `TOYGRES_BENCH_ROUNDS` is the number of rounds (5).

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use toygres_activities::platform::certificates::{CertificateAuthority, Issued, Signs};
use toygres_e2e::kubernetes::{Namespace, kinds, kubectl_with_input};
use toygres_e2e::measure::{self, Measure, Pair, calm, note};
use toygres_e2e::wait::SOON;
use toygres_e2e::{Api, Cluster};

const MANY: usize = 10;
const CROWD: usize = 100;
const CROWD_LIMIT: Duration = Duration::from_secs(1800);
/// Nobody who works by hand is faster.
const POLL: Duration = Duration::from_millis(5);
const ATTEMPT: Duration = Duration::from_secs(2);
const PASSWORD: &str = "the-password-of-the-bench";
/// A name that is nothing else in any of the objects.
const MODEL: &str = "themodel";

fn main() -> ExitCode {
    measure::run(run())
}

async fn run() -> Result<Vec<Measure>> {
    let rounds = measure::rounds(5)?;
    let Some(cluster) = Cluster::for_measurement().await? else { return Ok(Vec::new()) };
    let by_hand = Namespace::new("bench-by-hand").await?;
    let api = cluster.serve().await?;
    let certificate = CertificateAuthority::open(cluster.toygres.state_dir(), Signs::Clients)?.issue_client("toygres")?;
    let bench = Bench { manifest: manifest_of_a_model(&cluster, &api, &by_hand).await?, certificate, cluster, by_hand, api };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\n{cores} cores, {rounds} rounds, medians; the program is {}\n", profile()?);
    let mut measures = bench.one_by_one(rounds).await?;
    measures.push(bench.many_at_once(rounds.min(3)).await?);
    measures.extend(bench.count_calls().await?);
    measures.extend(bench.crowd().await?);
    Ok(measures)
}

/// What was built, as far as its path tells.
fn profile() -> Result<String> {
    Ok(toygres_e2e::toygres::program("release")?.display().to_string())
}

/// The objects of an instance, as one would write them down by hand.
async fn manifest_of_a_model(cluster: &Cluster, api: &Api, by_hand: &Namespace) -> Result<String> {
    note("making the model whose objects are applied by hand");
    create(api, MODEL).await?;
    let labelled = format!("app.kubernetes.io/instance={MODEL}");
    let text = cluster.namespace.kubectl(&["get", kinds().await?, "-l", &labelled, "-o", "json"]).await?;
    let mut list: Value = serde_json::from_str(&text)?;
    let objects = list["items"].as_array_mut().context("no objects")?;
    // What the cluster made of them is its own business.
    objects.retain(|object| object["metadata"]["ownerReferences"].is_null() && object["kind"] != "Endpoints");
    ensure!(objects.len() == 9, "{} objects of an instance", objects.len());
    for object in &mut *objects {
        let metadata = &object["metadata"];
        object["metadata"] = json!({ "name": metadata["name"], "labels": metadata["labels"] });
        if let Some(object) = object.as_object_mut() {
            object.remove("status");
        }
        if let Some(spec) = object["spec"].as_object_mut() {
            for chosen in ["clusterIP", "clusterIPs", "ipFamilies", "volumeName"] {
                spec.remove(chosen);
            }
        }
    }
    let manifest =
        list.to_string().replace("\"app.kubernetes.io/managed-by\":\"toygres\"", "\"app.kubernetes.io/managed-by\":\"hand\"");
    api.delete(MODEL).await?;
    cluster.namespace.expect_empty().await?;
    Ok(manifest.replace(&cluster.namespace.name, &by_hand.name))
}

/// Who logs in.
#[derive(Clone, Copy)]
enum Client {
    /// The user, whose role toygres makes.
    Ours,
    /// The only role that the objects alone make.
    ByHand,
}

struct Bench {
    /// As toygres has one.
    certificate: Issued,
    cluster: Cluster,
    api: Api,
    by_hand: Namespace,
    manifest: String,
}

impl Bench {
    /// One create and one delete at a time.
    async fn one_by_one(&self, rounds: usize) -> Result<Vec<Measure>> {
        let (mut creates, mut deletes) = (Pair::default(), Pair::default());
        for round in 0..rounds {
            note(&format!("create and delete, round {} of {rounds}", round + 1));
            let name = format!("demo-{round}");
            let manifest = self.manifest_of(&name);
            let service = Service::await_address(&self.by_hand, &name)?;
            let began = calm().await?;
            self.kubectl("apply", &manifest).await?;
            self.expect_answer(service, Client::ByHand).await?;
            creates.by_hand.push(began.elapsed());
            let began = Instant::now();
            self.kubectl("delete", &manifest).await?;
            deletes.by_hand.push(began.elapsed());
            self.by_hand.expect_empty().await?;

            let service = Service::await_address(&self.cluster.namespace, &name)?;
            let began = calm().await?;
            create(&self.api, &name).await?;
            self.expect_answer(service, Client::Ours).await?;
            creates.ours.push(began.elapsed());
            let began = Instant::now();
            self.api.delete(&name).await?;
            deletes.ours.push(began.elapsed());
            self.cluster.namespace.expect_empty().await?;
        }
        let (create, delete) = (creates.ratio(), deletes.ratio());
        Ok(vec![
            creates.measure("create, HTTP to `SELECT 1` over TLS; kubectl apply", "at most 1.15", create <= 1.15),
            deletes.measure("delete until everything is gone; kubectl delete", "at most 1.3", delete <= 1.3),
        ])
    }

    /// Ten requests at once; ten sets of objects in one file.
    async fn many_at_once(&self, rounds: usize) -> Result<Measure> {
        let mut times = Pair::default();
        for round in 0..rounds {
            note(&format!("{MANY} creates at once, round {} of {rounds}", round + 1));
            let names: Vec<String> = (0..MANY).map(|number| format!("many-{round}-{number}")).collect();
            let manifests: Vec<String> = names.iter().map(|name| self.manifest_of(name)).collect();
            // One list is one document of YAML.
            let manifest = manifests.join("\n---\n");
            let services = names.iter().map(|name| Service::await_address(&self.by_hand, name)).collect::<Result<Vec<_>>>()?;
            let began = calm().await?;
            self.kubectl("apply", &manifest).await?;
            try_join_all(services.into_iter().map(|service| self.expect_answer(service, Client::ByHand))).await?;
            times.by_hand.push(began.elapsed());
            self.kubectl("delete", &manifest).await?;
            self.by_hand.expect_empty().await?;

            let place = &self.cluster.namespace;
            let services = names.iter().map(|name| Service::await_address(place, name)).collect::<Result<Vec<_>>>()?;
            let began = calm().await?;
            try_join_all(names.iter().zip(services).map(async |(name, service)| {
                create(&self.api, name).await?;
                self.expect_answer(service, Client::Ours).await
            }))
            .await?;
            times.ours.push(began.elapsed());
            try_join_all(names.iter().map(|name| self.api.delete(name))).await?;
            place.expect_empty().await?;
        }
        let ratio = times.ratio();
        Ok(times.measure("10 creates at once; kubectl apply of ten", "at most 1.2", ratio <= 1.2))
    }

    /// Requests to the API server for one create and one delete, watches included: ours by the
    /// client's log, which is off while times are measured, kubectl's by its own.
    async fn count_calls(&self) -> Result<Vec<Measure>> {
        note("counting calls");
        self.cluster.toygres.ok(&["server", "stop"]).await?;
        self.start_server().await?;
        let api = self.cluster.api()?;
        let manifest = self.manifest_of("counted");
        create(&api, "counted").await?;
        let create = self.calls_so_far()?;
        api.delete("counted").await?;
        let delete = self.calls_so_far()? - create;
        ensure!(create > 0 && delete > 0, "the log has no calls: {create}, {delete}");
        let counted = async |verb: &str| -> Result<usize> {
            let mut kubectl = Command::new("kubectl");
            kubectl.args(["-v=6", "-n", &self.by_hand.name, verb, "-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
            let mut child = kubectl.stdout(Stdio::null()).spawn()?;
            let mut pipe = child.stdin.take().context("kubectl reads nothing")?;
            tokio::io::AsyncWriteExt::write_all(&mut pipe, manifest.as_bytes()).await?;
            drop(pipe);
            let output = child.wait_with_output().await?;
            Ok(String::from_utf8_lossy(&output.stderr).lines().filter(|line| line.contains("\"Response\" verb=")).count())
        };
        let (applied, deleted) = (counted("apply").await?, counted("delete").await?);
        let line = |name, ours: usize, by_hand: usize| {
            let reached = format!("{ours}");
            Measure { name, ours: ours.to_string(), by_hand: by_hand.to_string(), reached, limit: "-", is_met: true }
        };
        Ok(vec![line("API calls of a create", create, applied), line("API calls of a delete", delete, deleted)])
    }

    /// As many creates at once as don't fit onto the node: each instance goes as soon as it is there, which gives room to another.
    async fn crowd(&self) -> Result<Vec<Measure>> {
        note(&format!("{CROWD} creates at once, of which most wait"));
        self.cluster.toygres.ok(&["server", "stop"]).await?;
        let others = watches().await?;
        self.start_server().await?;
        let calls_before = self.calls_so_far()?;
        let most = std::sync::Mutex::new(BTreeMap::<String, usize>::new());
        let began = Instant::now();
        let names: Vec<String> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
        let api = self.cluster.api()?;
        let lives = try_join_all(names.iter().map(async |name| {
            let created = api.wait_within(&begin_create(&api, name).await?, CROWD_LIMIT).await?;
            ensure!(created["state"] == "succeeded", "{created:#}");
            let deleted = api.wait_within(&api.begin_delete(name).await?, CROWD_LIMIT).await?;
            ensure!(deleted["state"] == "succeeded", "{deleted:#}");
            Ok::<_, anyhow::Error>(())
        }));
        let sample = async {
            loop {
                for (kind, open) in watches().await? {
                    let more = open.saturating_sub(others.get(&kind).copied().unwrap_or_default());
                    let mut most = most.lock().map_err(|_| anyhow::anyhow!("a sample panicked"))?;
                    let known = most.entry(kind).or_default();
                    *known = more.max(*known);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let sampled: Result<()> = tokio::select! {
            lives = lives => lives.map(drop),
            sampled = sample => sampled,
        };
        sampled?;
        let (took, calls) = (began.elapsed(), self.calls_so_far()? - calls_before);
        let most = most.into_inner().map_err(|_| anyhow::anyhow!("a sample panicked"))?;
        println!("watches that were open at most, by kind: {most:?}");
        let (kind, open) = most.into_iter().max_by_key(|(_, open)| *open).context("no watch was seen")?;
        let line = |name, reached: String, limit, is_met| Measure {
            name,
            ours: reached.clone(),
            by_hand: "-".into(),
            reached,
            limit,
            is_met,
        };
        Ok(vec![
            line("100 creates at once, each deleted when it is ready", format!("{:.0} s", took.as_secs_f64()), "-", true),
            line("  API calls of each life", (calls / CROWD).to_string(), "-", true),
            line("  watches that were open, of one kind", format!("{open} ({kind})"), "at most 5", open <= 5),
        ])
    }

    /// With its calls in its log, and patience for a crowd.
    async fn start_server(&self) -> Result<()> {
        let mut start = self.cluster.command(&["server", "start"]);
        start.env("TOYGRES_LOG", "info,kube_client=debug").stderr(Stdio::null());
        start.env("TOYGRES_SCHEDULING_TIMEOUT_SECONDS", "1800").env("TOYGRES_READY_TIMEOUT_SECONDS", "1800");
        let started = start.output().await?;
        ensure!(started.status.success(), "the server doesn't start");
        Ok(())
    }

    fn calls_so_far(&self) -> Result<usize> {
        let mut log = String::new();
        for entry in std::fs::read_dir(self.cluster.toygres.state_dir())? {
            let path = entry?.path();
            // It is rotated.
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("server.log")) {
                log.push_str(&std::fs::read_to_string(&path)?);
            }
        }
        let place = format!("/namespaces/{}/", self.cluster.namespace.name);
        let is_call = |line: &&str| line.contains("HTTP{http.method=") && line.ends_with(": requesting") && line.contains(&place);
        Ok(log.lines().filter(is_call).count())
    }

    fn manifest_of(&self, name: &str) -> String {
        self.manifest.replace(MODEL, name)
    }

    async fn kubectl(&self, verb: &str, manifest: &str) -> Result<()> {
        kubectl_with_input(&["-n", &self.by_hand.name, verb, "-f", "-"], manifest).await.map(drop)
    }

    /// Waits until a client has an answer over TLS from the Service's address.
    async fn expect_answer(&self, service: Service, client: Client) -> Result<()> {
        let (began, address) = (Instant::now(), service.address().await?);
        // The model's certificate is for its own names; the CA is checked.
        let options = PgConnectOptions::new_without_pgpass()
            .host(&address)
            .database("postgres")
            .ssl_mode(PgSslMode::VerifyCa)
            .ssl_root_cert(self.cluster.toygres.state_dir().join("ca.crt"))
            .disable_statement_logging();
        let options = match client {
            Client::Ours => options.username("app").database("app").password(PASSWORD),
            Client::ByHand => options
                .username("toygres")
                .ssl_client_cert_from_pem(&self.certificate.chain_pem)
                .ssl_client_key_from_pem(&self.certificate.key_pem),
        };
        loop {
            let attempt = async {
                let mut connection = options.connect().await?;
                sqlx::query("SELECT 1").execute(&mut connection).await?;
                connection.close().await
            };
            match tokio::time::timeout(ATTEMPT, attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => ensure!(began.elapsed() < SOON * 4, "{address} doesn't answer: {error}"),
                Err(_) => ensure!(began.elapsed() < SOON * 4, "{address} doesn't answer"),
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The watches that are open on kinds of objects in one namespace, by the API server's word. Its own controllers' are on all
/// namespaces, the kubelet's on single objects.
async fn watches() -> Result<BTreeMap<String, usize>> {
    let metrics = toygres_e2e::kubernetes::kubectl(&["get", "--raw", "/metrics"]).await?;
    let mut open = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("apiserver_longrunning_requests{")) {
        if !line.contains("scope=\"namespace\"") || !line.contains("verb=\"WATCH\"") {
            continue;
        }
        let kind = line.split("resource=\"").nth(1).and_then(|rest| rest.split('"').next()).context("a watch of no kind")?;
        let count: f64 = line.rsplit(' ').next().context("no number")?.parse()?;
        *open.entry(kind.to_owned()).or_default() += count as usize;
    }
    Ok(open)
}

/// The address of a Service that isn't there yet, watched for while it is made: looking it up
/// afterwards would cost both ways the start of a kubectl.
struct Service {
    watch: Child,
}

impl Service {
    fn await_address(namespace: &Namespace, name: &str) -> Result<Self> {
        let mut kubectl = Command::new("kubectl");
        let only = format!("--field-selector=metadata.name={name}");
        let address = "-o=jsonpath={.spec.clusterIP}{\"\\n\"}";
        kubectl.args(["-n", &namespace.name, "get", "services", &only, "--watch", address]);
        Ok(Self { watch: kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn()? })
    }

    async fn address(mut self) -> Result<String> {
        let lines = self.watch.stdout.take().context("kubectl prints nothing")?;
        let line = tokio::time::timeout(SOON, BufReader::new(lines).lines().next_line()).await??;
        self.watch.kill().await?;
        line.filter(|line| !line.is_empty()).context("no address of the Service")
    }
}

/// From the request until toygres says that it is done.
async fn create(api: &Api, name: &str) -> Result<()> {
    api.wait_success(&begin_create(api, name).await?).await.map(drop)
}

async fn begin_create(api: &Api, name: &str) -> Result<String> {
    let body = json!({ "name": name, "platform": "kubernetes", "password": PASSWORD });
    let operation = api.post_instance(&body).await?.expect(202)?;
    Ok(operation["id"].as_str().context("an operation without an id")?.to_owned())
}
