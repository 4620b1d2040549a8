// Looks at the page of a running agent in a real browser: `node page.mjs URL FOLDER WANTED`. Screenshots go to the folder; what
// the numbers have to be is in WANTED, as JSON. What it wants done meanwhile it says as a line on stdout, and a line on stdin
// says that it was. What is wrong ends it with an error.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, folder, json] = process.argv.slice(2);
const wanted = JSON.parse(json);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** A step of the history, a poll, and some more. */
const SOON = 45_000;
const WIDE = { width: 1280, height: 900 };
const SMALL = { width: 390, height: 844 };
const VIEWS = { overview: "#/", container: `#/container/${wanted.odd.id}`, map: "#/map", events: "#/events", agent: "#/agent" };

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function have(what) {
  console.log(what);
  const { value, done } = await lines.next();
  assert(!done, `nobody says that ${what} is done`);
  return value;
}

const browser = await chromium.launch({ executablePath: wanted.browser, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: WIDE, reducedMotion: "reduce", timezoneId: "UTC", locale: "en-GB" });
const wrong = [];
const requests = [];
async function newPage() {
  const page = await context.newPage();
  page.setDefaultTimeout(SOON);
  page.on("dialog", (dialog) => wrong.push(`a dialog: ${dialog.message()}`));
  page.on("pageerror", (error) => wrong.push(`an exception: ${error.stack}`));
  page.on("request", (request) => requests.push(request.url()));
  page.on("console", (message) => {
    // That nobody answers while the agent is down is no fault of the page.
    if (message.type() === "error" && !message.text().includes("net::ERR_")) wrong.push(message.text());
  });
  await page.exposeFunction("violated", (what) => wrong.push(`against the policy: ${what}`));
  await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) => window.violated(`${event.violatedDirective} ${event.blockedURI}`)));
  return page;
}
let page = await newPage();

const get = async (path) => (await fetch(new URL(path, url))).json();
const text = (selector) => page.locator(selector).first().textContent();
const row = (id) => `tr[data-cgroup="${id}"]`;
const becomes = (selector, value) =>
  page.waitForFunction(([selector, value]) => document.querySelector(selector)?.textContent === value, [selector, value])
    .catch(async (error) => {
      throw new Error(`${selector} is ${await page.locator(selector).first().textContent({ timeout: 100 }).catch(() => "not there")}, not ${value}`, { cause: error });
    });

async function open(view) {
  await page.goto(new URL(view, url).href);
  await page.waitForSelector("h1");
}

async function accessible(what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const said = violations.flatMap((rule) => rule.nodes.map((node) => `${rule.id}: ${node.html}: ${node.failureSummary}`));
  assert.deepEqual(said, [], `axe-core on ${what}`);
}

const shoot = (name) => page.screenshot({ path: join(folder, `${name}.png`) });

// It is there at once, and small: when there is something to be shown.
for (const until = Date.now() + SOON; ; await new Promise((wake) => setTimeout(wake, 200))) {
  const { containers } = await get(`api/v1/history?cgroup=${wanted.odd.id}`);
  if (containers.length > 0) break;
  assert(Date.now() < until, "the agent remembers nothing");
}
const began = performance.now();
await open("#/");
await page.waitForSelector(row(wanted.odd.id));
const took = performance.now() - began;
const size = await page.evaluate(() => performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .filter((one) => !one.name.includes("/api/")).reduce((sum, one) => sum + one.decodedBodySize, 0));
console.error(`shown after ${took.toFixed(0)} ms, ${(size / 1024).toFixed(0)} KiB`);
assert(size > 0 && size < 300 * 1024, `${size} bytes`);
assert(took < 3000, `${took} ms`);

// The overview has the workload's own numbers, and the worst first.
await becomes(`${row(wanted.failing.id)} [data-of=failed]`, String(wanted.failing.failed));
await becomes(`${row(wanted.odd.id)} [data-of=connections]`, String(wanted.odd.held));
await becomes(`${row(wanted.odd.id)} [data-of=failed]`, "0");
const order = await page.locator("tbody tr").evaluateAll((rows) => rows.map((row) => Number(row.dataset.cgroup)));
assert(order.indexOf(wanted.failing.id) < Math.min(...[wanted.odd.id, wanted.server.id].map((id) => order.indexOf(id))));
assert.match(await text(`${row(wanted.failing.id)} .why`), /connects failed \(100 %\), most refused/);
assert.equal(await text(`${row(wanted.failing.id)} .badge`), "▲ Bad");

// A name is text, whatever is in it.
await becomes(`${row(wanted.odd.id)} a`, wanted.odd.name);
assert.equal(await page.locator("script").count(), 1);
assert.equal(await page.locator("main b, main img, main script").count(), 0);

// A search finds it.
await page.fill("input[type=search]", "<SCRIPT>");
assert.equal(await page.locator("tbody tr").count(), 1);
await page.fill("input[type=search]", "");

// The container's page, by its link: what the workload and the API say.
await page.click(`${row(wanted.odd.id)} a`);
await becomes("h1", wanted.odd.name);
await becomes("[data-id=opened]", String(wanted.odd.opened));
await becomes("[data-id=established]", String(wanted.odd.held));
await page.waitForSelector("canvas.heatmap");
await page.waitForFunction((held) => document.querySelectorAll("tr[data-cookie]").length === held, wanted.odd.held);
const totals = await get(`api/v1/totals?cgroup=${wanted.odd.id}&metrics=tcptide_sent_bytes_total,tcptide_opened_total`);
assert.equal(totals.containers[0].metrics.tcptide_opened_total.active, wanted.odd.opened);
const peer = await text("tr[data-cookie] td");
assert(peer.includes(wanted.server.name), peer);
assert.match(await page.getAttribute("canvas.heatmap", "aria-label"), /[1-9]\d* samples, p50 \d.* p99 \d/);

const { states } = await get(`api/v1/states?cgroup=${wanted.odd.id}`);
for (const [state, n] of Object.entries(states[0].states)) await becomes(`[data-state=${state}]`, String(n));

// It is live.
const held = Number(await have("hold"));
await becomes("[data-id=established]", String(wanted.odd.held + held));
assert(page.url().includes("#/container/"));

// What is chosen is in the address.
await page.selectOption("header select >> nth=0", "1h");
await page.waitForURL(/range=1h/);
await becomes("[data-id=opened]", String(wanted.odd.opened + held));
await page.reload();
await becomes("h1", wanted.odd.name);
assert.equal(await page.inputValue("header select >> nth=0"), "1h");
await page.goBack();
await page.goBack();
await page.waitForSelector(row(wanted.odd.id));

// Events come as they happen.
await open("#/events");
await page.waitForSelector(".following.follow");
const ended = Number(await have("churn"));
await page.waitForFunction(([ended, name]) => {
  const rows = [...document.querySelectorAll("tbody tr")].filter((row) => row.querySelector("th")?.textContent === name);
  return rows.filter((row) => row.querySelector(".event.close")).length === ended;
}, [ended, wanted.odd.name]);
await shoot("events-light");

// The map.
await open("#/map");
await page.waitForSelector(".map svg a");
const { edges } = await get("api/v1/edges?since=5m");
const names = await page.locator(".map svg a title").allTextContents();
const ours = [wanted.odd.id, wanted.server.id, wanted.failing.id];
const expected = edges.map(({ client, server }) => [client, server])
  .filter((ends) => ends.some((end) => ours.includes(end.container?.cgroup_id)))
  .flatMap((ends) => ends.map((end) => end.container?.name ?? end.name ?? end.address));
assert(expected.includes(wanted.odd.name));
for (const name of expected) assert(names.includes(name), `${name} is not on the map`);
await page.locator(".map svg a", { hasText: wanted.server.name }).focus();
await page.keyboard.press("Enter");
await page.waitForURL(/focus=/);
await page.waitForSelector(".map .focus");

// The agent's own page.
await open("#/agent");
const health = await get("api/v1/health");
await becomes("[data-id=kernel]", health.kernel);
await becomes("[data-id=version]", health.version);
await becomes("[data-id=lost-connection_events]", String(health.lost.connection_events));
const { programs } = await get("api/v1/programs");
assert.equal(await page.locator("tr[data-program]").count(), programs.length);
await page.waitForFunction(() => /\d %/.test(document.querySelector("[data-id=cpu]").textContent));

// By keys: the first is a way past the navigation.
await open("#/");
await page.reload();
await page.waitForSelector("h1");
await page.keyboard.press("Tab");
await page.keyboard.press("Enter");
assert.equal(await page.evaluate(() => document.activeElement.id), "main");

// Who does not see it, in any colours, on any screen.
for (const theme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme: theme });
  for (const [name, view] of Object.entries(VIEWS)) {
    await open(view);
    await page.waitForSelector("main table, .following.follow");
    await page.waitForTimeout(600);
    await accessible(`${name}, ${theme}`);
    if (name !== "events") await shoot(`${name}-${theme}`);
  }
}
await page.emulateMedia({ colorScheme: "light" });
await page.setViewportSize(SMALL);
for (const [name, view] of Object.entries(VIEWS)) {
  await open(view);
  await page.waitForSelector("main table, .following.follow");
  await page.waitForTimeout(600);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert(wide <= 0, `${name} is ${wide} pixels wider than a small screen`);
  await accessible(`${name}, small`);
  await shoot(`${name}-small`);
}
await page.setViewportSize(WIDE);

// 200 containers are readable. What the agent answers of them is made up.
const own = page;
page = await newPage();
await page.addInitScript((answer) => {
  window.EventSource = class extends EventTarget {
    constructor(url) {
      super();
      const ask = new URL(url, location.href).searchParams.get("ask");
      setTimeout(() => this.dispatchEvent(new MessageEvent("answer", { data: JSON.stringify({ ask, status: 200, answer }) })), 10);
    }
    close() {}
  };
}, crowd(200));
await page.setViewportSize(WIDE);
await open("#/map?range=15m");
await page.waitForFunction(() => document.querySelectorAll(".map svg a").length === 200);
const boxes = await page.locator(".map svg text").evaluateAll((all) => all.map((text) => text.getBoundingClientRect().toJSON()));
assert(boxes.length >= 20, `${boxes.length} names`);
const over = boxes.filter((a, at) => boxes.some((b, other) => other > at && a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2));
assert(over.length <= boxes.length / 20 && boxes.every((box) => box.height > 11), `${over.length} names lie on others`);
await shoot("map-200");
await page.fill("input[type=search]", "service-117");
await page.waitForFunction(() => document.querySelectorAll(".map svg a:not(.faint)").length === 1);
await accessible("map of 200");
await page.locator(".map svg a:not(.faint)").focus();
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelectorAll(".map svg a").length < 30);
await shoot("map-200-focus");
await page.close();
page = own;

// The agent goes and comes back.
await open(VIEWS.container);
await becomes("h1", wanted.odd.name);
const now = String(wanted.odd.held + held);
await becomes("[data-id=established]", now);
await have("stop");
await page.waitForSelector(".banner");
await have("start");
await page.waitForSelector(".banner", { state: "detached" });
await becomes("[data-id=established]", now);
await open("#/events");
await page.waitForSelector(".following.follow");
await have("stop");
await page.waitForSelector(".following.waiting");
await have("start");
await page.waitForSelector(".following.follow");
await have("churn");
await page.waitForSelector("tbody .event.close");

assert.deepEqual(wrong, []);
const elsewhere = requests.filter((one) => !one.startsWith(url) && !one.startsWith("data:"));
assert.deepEqual(elsewhere, []);
await browser.close();
console.log("done");
process.exit(0);

/** Edges of so many containers: some that all talk to, and groups. */
function crowd(count) {
  const container = (n) => ({ container: { name: n < 5 ? `database-${n}` : `service-${n}`, cgroup_id: 1000 + n, runtime: "docker" } });
  const edge = (from, to, at) => ({
    client: container(from), server: container(to), port: 80 + (to % 7), connections: at % 40, opened: 100, failed: at % 37 === 0 ? 20 : 0,
    rates: { opened: 1, failed: 0, sent_bytes: 2 ** (at % 22), received_bytes: 2 ** (at % 19) },
    client_side: { sent_bytes: 1, received_bytes: 1, segments_out: 50, retransmits: at % 11 === 0 ? 3 : 0, srtt_us: 300 },
  });
  const edges = [];
  for (let n = 5; n < count; n += 1) {
    edges.push(edge(n, n % 5, n));
    const leader = 5 + Math.floor((n - 5) / 12) * 12;
    if (leader !== n) edges.push(edge(leader, n, n * 3));
    if (n % 9 === 0) edges.push(edge(n, 5 + ((n * 7) % (count - 5)), n * 5));
  }
  return { matched: edges.length, edges };
}
