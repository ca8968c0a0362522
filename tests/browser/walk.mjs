// Walks the page with a browser: see `run`.
//
//   node walk.mjs URL DEWAR WORK MODULES SCREENSHOTS
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, dewar, work, modules, screenshots] = process.argv.slice(2);
const require = createRequire(`${modules}/node_modules/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const HOSTILE = "<img src=x onerror=\"window.harmed=1\">'&\u202e";
const problems = [];
const wrong = (where, what) => problems.push(`${where}: ${what}`);

function launch(id, task, labels = {}) {
  const file = `${work}/${encodeURIComponent(id)}.json`;
  writeFileSync(file, JSON.stringify(task));
  const more = Object.entries(labels).flatMap(([name, value]) => ["--label", `${name}=${value}`]);
  execFileSync(dewar, ["launch", file, "--task-id", id, ...more], { stdio: ["ignore", "ignore", "inherit"] });
}

const part = encodeURIComponent;
const run = (name, cmdline, more = {}) => ({ name, cmdline, min_duration: 1, ...more });

function tasks() {
  launch(
    "shop-deploy-42",
    {
      name: "shop-deploy",
      processes: [
        run("fetch", "echo fetching; sleep 0.3; echo done"),
        run("unpack", "echo unpacking"),
        run("compile", "for n in 1 2 3; do echo step $n; done; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done"),
        run("flaky", "test -e again || { touch again; echo no luck >&2; exit 3; }", { max_failures: 3 }),
        run("migrate", "echo migrated"),
        run("server", "n=0; while :; do n=$((n+1)); echo request $n; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.4; done"),
        run("metrics", "while :; do echo tick; sleep 1; done", { ephemeral: true, daemon: true }),
        run("smoke-test", "sleep 600"),
        run("report", "echo report"),
        run("tidy", "echo tidy", { final: true }),
      ],
      constraints: [
        { order: ["fetch", "unpack", "compile", "server"] },
        { order: ["unpack", "flaky", "migrate", "server"] },
        { order: ["migrate", "smoke-test", "report"] },
      ],
    },
    { app: "shop", tier: "web" },
  );
  launch("nightly-backup-7", { name: "backup", processes: [run("dump", "echo dumped; head -c 300000 /dev/zero | base64 > dump.txt; mkdir -p old/2025; ln -s /etc/passwd link")] }, { app: "shop" });
  launch("import-19", { name: "import", processes: [run("read", "echo cannot read >&2; exit 4"), run("write", "true")], constraints: [{ order: ["read", "write"] }] });
  launch(
    "hostile",
    {
      name: HOSTILE,
      processes: [
        run(HOSTILE, `seq 1000000; printf '</pre><script>window.harmed=2</script>\\033[31mred\\033]0;title\\007\\n'; touch '<img src=x onerror="window.harmed=3">'; ln -s /etc/passwd passwd`),
      ],
    },
    { note: HOSTILE },
  );
  for (let n = 0; n < 6; n++) launch(`batch-${n}`, { name: "batch", processes: [run("work", n === 3 ? "exec sleep 600" : "true")] }, { app: "batch" });
}

const pages = [
  ["tasks", "/"],
  ["tasks-finished", "/?state=finished&page_size=5"],
  ["tasks-none", "/?q=nothing-is-called-so"],
  ["task-live", "/task/shop-deploy-42"],
  ["task-failed", "/task/import-19"],
  ["task-hostile", "/task/hostile"],
  ["process-live", "/process/shop-deploy-42/server"],
  ["process-retried", "/process/shop-deploy-42/flaky"],
  ["process-hostile", `/process/hostile/${part(HOSTILE)}`],
  ["raw", "/rawtask/shop-deploy-42"],
  ["log-live", "/logs/shop-deploy-42/server/0/stdout"],
  ["log-hostile", `/logs/hostile/${part(HOSTILE)}/0/stdout`],
  ["log-middle", `/logs/hostile/${part(HOSTILE)}/0/stdout?offset=100000`],
  ["files", "/browse/nightly-backup-7"],
  ["files-hostile", "/browse/hostile"],
  ["file", "/file/nightly-backup-7/dump.txt?offset=65536"],
  ["not-found", "/task/unknown"],
];

// What no page may do. What is not there is an error for the browser, too.
function watch(page, name) {
  page.on("console", (message) => {
    const isExpected = name().startsWith("not-found") && message.text().includes("404");
    if (message.type() === "error" && !isExpected) wrong(name(), `console: ${message.text()}`);
  });
  page.on("pageerror", (error) => wrong(name(), `script: ${error}`));
  page.on("dialog", (dialog) => {
    wrong(name(), `dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) wrong(name(), `asks for ${request.url()}`);
  });
}

async function look(page, name, target) {
  await page.goto(url + target, { waitUntil: "load" });
  const told = await page.evaluate(() => ({
    harmed: window.harmed,
    violations: window.violations,
    inner: document.documentElement.clientWidth,
    whole: document.documentElement.scrollWidth,
  }));
  if (told.harmed) wrong(name, `a script of a task ran: ${told.harmed}`);
  for (const violation of told.violations) wrong(name, `policy: ${violation}`);
  if (told.whole > told.inner) wrong(name, `${told.whole} px wide, where there are ${told.inner}`);
}

async function audit(page, name) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, help, nodes } of violations) {
    wrong(name, `axe ${id}: ${help}: ${nodes.map((node) => node.html).slice(0, 3).join(" | ")}`);
  }
}

async function walk(browser) {
  const looks = [
    { look: "light", colorScheme: "light", viewport: { width: 1280, height: 860 } },
    { look: "dark", colorScheme: "dark", viewport: { width: 1280, height: 860 } },
    { look: "phone", colorScheme: "light", viewport: { width: 360, height: 740 }, isMobile: true },
    { look: "phone-dark", colorScheme: "dark", viewport: { width: 360, height: 740 }, isMobile: true },
  ];
  await Promise.all(
    looks.map(async ({ look: name, ...options }) => {
      const context = await browser.newContext(options);
      await context.addInitScript(() => {
        window.violations = [];
        document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
      });
      const page = await context.newPage();
      let full = name;
      watch(page, () => full);
      for (const [page_name, target] of pages) {
        full = `${page_name}-${name}`;
        await look(page, full, target);
        // On a phone the colours and the names of things are the same.
        if (!options.isMobile) await audit(page, full);
        await page.screenshot({ path: `${screenshots}/${full}.png`, fullPage: true });
      }
      await context.close();
    }),
  );
}

async function expect(where, what, condition) {
  const until = Date.now() + 10_000;
  while (Date.now() < until) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  wrong(where, `never seen: ${what}`);
}

async function live(browser) {
  const context = await browser.newContext();
  const list = await context.newPage();
  watch(list, () => "live list");
  await list.goto(`${url}/`);
  await list.focus("a[href='/task/batch-3']");
  let reloads = 0;
  list.on("framenavigated", () => (reloads += 1));
  launch("born-while-looked-at", { name: "born", processes: [run("a", "exec sleep 600")] });
  await expect("live list", "a task that is launched", () => list.locator("#task-born-while-looked-at").count());
  const focused = await list.evaluate(() => document.activeElement.getAttribute("href"));
  if (focused !== "/task/batch-3") wrong("live list", `the focus went to ${focused}`);

  const task = await context.newPage();
  watch(task, () => "live task");
  await task.goto(`${url}/task/born-while-looked-at`);
  await expect("live task", "that it is connected", () => task.locator("#connection[data-is=live]").count());
  execFileSync(dewar, ["kill", "--wait", "0s", "born-while-looked-at"], { stdio: "ignore" });
  await expect("live task", "its end", async () => (await task.locator(".state-line .badge").first().innerText()).includes("KILLED"));
  await expect("live list", "its end", async () => (await list.locator("#task-born-while-looked-at").innerText()).includes("KILLED"));
  if (reloads) wrong("live list", `it was loaded ${reloads} times more`);

  const log = await context.newPage();
  watch(log, () => "live log");
  await log.goto(`${url}/logs/shop-deploy-42/server/0/stdout`);
  const length = () => log.evaluate(() => document.getElementById("log").textContent.length);
  const before = await length();
  await expect("live log", "what is written", async () => (await length()) > before);
  const lines = (await log.evaluate(() => document.getElementById("log").textContent)).trim().split("\n");
  lines.slice(1).forEach((line, at) => {
    const number = (text) => Number(text.split(" ")[1]);
    if (number(line) !== number(lines[at]) + 1) wrong("live log", `${line} after ${lines[at]}`);
  });
  await context.close();
}

async function keys(browser) {
  const page = await browser.newPage();
  await page.goto(`${url}/task/shop-deploy-42`);
  await page.keyboard.press("Tab");
  const first = await page.evaluate(() => document.activeElement.className);
  if (first !== "skip") wrong("keys", `the first stop is ${first}, not the way to the content`);
  await page.close();
}

async function without_script(browser) {
  const context = await browser.newContext({ javaScriptEnabled: false });
  const page = await context.newPage();
  for (const [target, text] of [
    ["/", "nightly-backup-7"],
    ["/task/shop-deploy-42", "smoke-test"],
    ["/process/shop-deploy-42/flaky", "exit status 3"],
    ["/logs/nightly-backup-7/dump/0/stdout", "dumped"],
    ["/browse/nightly-backup-7", "dump.txt"],
  ]) {
    await page.goto(url + target);
    if (!(await page.locator("main").innerText()).includes(text)) wrong(`${target} without scripts`, `no ${text}`);
  }
  await page.goto(`${url}/`);
  await page.fill("input[name=q]", "backup");
  await page.press("input[name=q]", "Enter");
  await page.waitForURL(/q=backup/);
  const rows = await page.locator("tbody tr").count();
  if (rows !== 1) wrong("search without scripts", `${rows} rows`);
  await context.close();
}

const begun = Date.now();
const spent = (what) => process.env.TIMES && console.log(`${what}: ${((Date.now() - begun) / 1000).toFixed(1)} s`);
tasks();
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  // Until there is something to draw.
  await new Promise((resolve) => setTimeout(resolve, 3000));
  spent("begin");
  await live(browser);
  spent("live");
  await keys(browser);
  await without_script(browser);
  spent("without scripts");
  await walk(browser);
} finally {
  await browser.close();
}
console.log(`${pages.length} pages in 4 looks, ${((Date.now() - begun) / 1000).toFixed(1)} s`);
for (const problem of new Set(problems)) console.error(`tests/browser: ${problem}`);
process.exit(problems.length ? 1 : 0);
