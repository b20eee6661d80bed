// What the admin pages do beyond showing: times in the reader's zone, live parts, forms and buttons that call the API.
// The markup says what; nothing here knows a page. docs: the data-* attributes are explained where they are read.

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const read = (values, path) => path.split(".").reduce((value, name) => value?.[name], values);

// -- times: <time data-form="relative|age|short"> --------------------------------------------------------

const inFull = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });
const inShort = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });
const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const REDRAW_MS = 5000;

function fromNow(at) {
  const seconds = (at - Date.now()) / 1000;
  const [unit, length] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? [];
  return unit ? relative.format(Math.trunc(seconds / length), unit) : "now";
}

const age = (at) => `for ${fromNow(at).replace(" ago", "").replace("now", "a moment")}`;

function showTimes(root) {
  for (const node of all("time[data-form]", root)) {
    const at = new Date(node.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const text = { relative: fromNow, age }[node.dataset.form]?.(at) ?? inShort.format(at);
    if (node.textContent !== text) node.textContent = text;
    node.title = inFull.format(at);
  }
}

// -- live parts: [data-live] is brought to what the server shows now ---------------------------------

const PAUSE_MS = 1000;
const shown = new Map();
let stale = false, timer = 0, pauseMs = PAUSE_MS;

function isReading() {
  const marked = document.getSelection();
  const inLive = (node) => (node instanceof Element ? node : node?.parentElement)?.closest("[data-live]");
  return Boolean(marked && !marked.isCollapsed && (inLive(marked.anchorNode) || inLive(marked.focusNode)));
}

const mustWait = () => document.hidden || one("dialog[open]") || isReading();

function changed() {
  stale = true;
  if (!timer && !mustWait()) timer = setTimeout(refresh, pauseMs);
}

async function refresh() {
  stale = false;
  const began = performance.now();
  try {
    const answer = await fetch(location.href, { cache: "no-store", credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const isOther = answer.ok && one("script", page)?.getAttribute("src") !== one("script").getAttribute("src");
    // The login has ended, or Caravan was updated.
    if (answer.redirected || answer.status === 401 || isOther) return location.reload();
    if (!answer.ok) say("#failed", "This page could not be brought up to date. It shows what was known before.");
    else if (mustWait()) stale = true;
    else all("[data-live]").forEach((part) => bring(part, page.getElementById(part.id)));
  } catch {
    pulse("lost");
  } finally {
    // A big page on a busy server is asked for less often.
    pauseMs = Math.max(PAUSE_MS, 5 * (performance.now() - began));
    timer = 0;
    if (stale) changed();
  }
}

function bring(part, fresh) {
  if (!fresh || shown.get(part.id) === fresh.innerHTML) return;
  shown.set(part.id, fresh.innerHTML);
  const had = part.contains(document.activeElement);
  showTimes(fresh);
  morph(part, fresh);
  filterAll();
  if (had && !part.contains(document.activeElement)) {
    part.tabIndex = -1;
    part.focus({ preventScroll: true });
  }
}

// Changes only what differs: focus, scrolling and what the reader opened stay where they are.
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (!(old instanceof Element)) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && name !== "tabindex" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  const wanted = new Set(all(":scope > [id]", fresh).map((child) => child.id));
  const known = new Map();
  for (const child of [...old.children]) {
    if (!child.id) continue;
    if (wanted.has(child.id)) known.set(child.id, child);
    else child.remove();
  }
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const twin = child.id ? known.get(child.id) : at && !at.id && at.nodeName === child.nodeName ? at : null;
    if (!twin) {
      old.insertBefore(child, at);
    } else {
      if (twin === at) at = at.nextSibling;
      else old.insertBefore(twin, at);
      morph(twin, child);
    }
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// -- the stream that says when to look: body[data-events] --------------------------------------------

let events = null;

function pulse(state) {
  const sign = one("#pulse");
  if (!sign || sign.dataset.state === state) return;
  sign.dataset.state = state;
  sign.textContent = { on: "Live", lost: "Connecting again", off: "Not live" }[state];
}

function listen() {
  const url = document.body.dataset.events;
  if (!url || events || document.hidden) return;
  events = new EventSource(url);
  events.addEventListener("open", () => { pulse("on"); changed(); });
  events.addEventListener("changed", changed);
  events.addEventListener("error", () => {
    pulse("lost");
    if (events?.readyState !== EventSource.CLOSED) return;
    // Refused, and not tried again by itself: the page's own address says whether it is the login.
    stop();
    changed();
    setTimeout(listen, 5000);
  });
}

function stop() {
  events?.close();
  events = null;
}

// A tab that nobody looks at holds no connection.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return stop();
  showTimes(document);
  listen();
});
document.addEventListener("selectionchange", () => { if (stale) changed(); });

// -- what is said: a toast, read out loud -----------------------------------------------------------

let hush = 0;
function say(where, text) {
  all(".toast").forEach((toast) => { toast.textContent = ""; });
  one(where).textContent = text;
  clearTimeout(hush);
  hush = setTimeout(() => { one(where).textContent = ""; }, 12000);
}

const phrase = (text, values) => text.replace(/\{([\w.]+)\}/g, (_, path) => read(values, path) ?? "");

// -- the reader's filter: input[data-filter="id of a table"], rows with data-find --------------------

function filter(input) {
  const table = document.getElementById(input.dataset.filter);
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = table ? all("[data-find]", table) : [];
  for (const row of rows) row.hidden = !words.every((word) => row.dataset.find.toLowerCase().includes(word));
  const none = one(`[data-none="${input.dataset.filter}"]`);
  if (none) none.hidden = rows.some((row) => !row.hidden) || !rows.length;
}

const filterAll = () => all("input[data-filter]").forEach(filter);

// -- filling: data-text, data-list (+ data-count), data-if, data-unless, data-options, fields by name ---

const MOST = 20;

function item(text) {
  const li = document.createElement("li");
  li.append(document.createElement("bdi"));
  li.firstChild.textContent = text;
  return li;
}

function list(node, values) {
  const items = read(values, node.dataset.list) ?? [];
  const count = (node.dataset.count && read(values, node.dataset.count)) || items.length;
  node.replaceChildren(...items.slice(0, MOST).map(item));
  if (count > MOST) node.append(item(`and ${count - MOST} more`));
}

function fill(root, values) {
  const truth = (path) => Boolean([read(values, path)].flat()[0]);
  const asText = (value, kind) => (kind === "seconds" ? `${Math.round(value * 1000)} ms` : String(value ?? "not known"));
  for (const node of all("[data-text]", root)) {
    const value = read(values, node.dataset.text);
    if (value !== undefined) node.textContent = asText(value, node.dataset.as);
  }
  for (const node of all("[data-list]", root)) list(node, values);
  for (const node of all("[data-if]", root)) node.hidden = !truth(node.dataset.if);
  for (const node of all("[data-unless]", root)) node.hidden = truth(node.dataset.unless);
  for (const node of all("[data-options]", root)) {
    node.replaceChildren(...(read(values, node.dataset.options) ?? []).map((name) => new Option(name, name)));
  }
}

function fillFields(form, values) {
  for (const field of form.elements) {
    const value = values[field.name], { kind } = field.dataset;
    if (value === undefined || field.tagName === "BUTTON") continue;
    if (field.type === "checkbox") { if (kind === "each") field.checked = value.includes(field.value); continue; }
    field.value = kind === "json" ? JSON.stringify(value) : kind === "lines" ? value.join("\n") : value ?? "";
  }
}

// -- dialogs: [data-dialog] opens one with the data-values around it, [data-close] closes it -----------

const known = new WeakMap();
const around = (node) => JSON.parse(node.closest("[data-values]")?.dataset.values ?? "{}");

function open(dialog, values) {
  for (const form of all("form", dialog)) {
    form.reset();
    fillFields(form, values);
    known.set(form, { values, before: collect(form) });
  }
  all("[data-error]", dialog).forEach((node) => { node.textContent = ""; });
  all("[data-result]", dialog).forEach((node) => { node.hidden = true; });
  fill(dialog, { origin: location.origin, ...values });
  for (const form of all("form", dialog)) known.get(form).before = collect(form);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

document.addEventListener("close", (event) => {
  if ("secret" in event.target.dataset) fill(event.target, { secret: "" });
  if (stale) changed();
}, true);
// A slip of the hand must not take away a key that is shown once.
document.addEventListener("cancel", (event) => { if ("secret" in event.target.dataset) event.preventDefault(); }, true);

// -- fields to JSON: data-kind="json|lines|pairs|each", data-times, data-join, data-empty, data-checked ----

function valueOf(field) {
  const text = field.value.trim();
  if (field.type === "number") return text === "" ? null : Number(text) * Number(field.dataset.times ?? 1);
  if (field.multiple) return [...field.selectedOptions].map((option) => option.value);
  if (field.dataset.kind === "json") return JSON.parse(field.dataset.checked ?? text);
  const lines = text.split("\n").map((line) => line.trim()).filter(Boolean);
  if (field.dataset.kind === "lines") return lines;
  if (field.dataset.kind === "pairs") return Object.fromEntries(lines.map((line) => line.split(/:(.*)/s, 2).map((half) => half.trim())));
  return field.type === "checkbox" ? field.checked : text;
}

function collect(form) {
  const body = {};
  for (const field of form.elements) {
    const { kind, join, empty, checked } = field.dataset;
    if (!field.name || field.tagName === "BUTTON") continue;
    if (kind === "each") {
      body[field.name] ??= [];
      if (field.checked) body[field.name].push(field.value);
    } else if (join) {
      body[join] ??= "";
      if (field.value !== "") body[join] += `${body[join] && ","}${field.name}=${field.value}`;
    } else if (!(empty === "omit" && !field.value.trim()) && !(checked && !field.checked)) {
      body[field.name] = valueOf(field);
    }
  }
  return body;
}

function bodyOf(form, names) {
  let body = Object.entries(collect(form));
  const { before } = known.get(form) ?? {};
  if (names) body = body.filter(([name]) => names.includes(name));
  if ("changes" in form.dataset) body = body.filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(before[name]));
  return Object.fromEntries(body);
}

// -- calls: data-api="METHOD path", then data-said, data-next, data-next-dialog, data-show; data-conflict ---

async function call(api, values, body, signal) {
  const [method, path] = api.split(" ");
  const url = path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(values[name]));
  const init = { method, signal, credentials: "same-origin", headers: {} };
  if (method !== "DELETE") Object.assign(init, { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  const answer = await fetch(url, init);
  if (answer.ok) return answer;
  if (answer.status === 401 && path !== "/admin/api/session") {
    location.assign(`/admin/login?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  const told = await answer.json().catch(() => ({}));
  const text = told.error ?? `Caravan answered with the status ${answer.status}. Try again; its log may say more.`;
  throw Object.assign(new Error(text), { status: answer.status });
}

function reason(error) {
  if (error.name === "AbortError") return "It was stopped.";
  return error instanceof TypeError ? "Caravan cannot be reached. Look whether it runs, then try again." : error.message;
}

async function finish(control, root, answer, values) {
  const made = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
  const { said, next, nextDialog, show } = { ...root.dataset, ...control.dataset };
  if (control.dataset.show) {
    const part = one(`[data-result="${show}"]`, root);
    fill(part, made);
    part.hidden = false;
    return;
  }
  if (next) return location.assign(next);
  control.closest("dialog")?.close();
  if (nextDialog) open(document.getElementById(nextDialog), made);
  if (said) say("#said", phrase(said, values));
  changed();
}

function problemOf(root) {
  const node = one("[data-error]", root.closest("dialog") ?? root);
  return (text) => { if (node) node.textContent = text; else if (text) say("#failed", text); };
}

// What was said of other fields than these.
function forget(form) {
  problemOf(form)("");
  all("[data-result]", form).forEach((node) => { node.hidden = true; });
}

async function busy(root, work) {
  const buttons = root.matches("button") ? [root] : all("button:not([type=button]), [data-api]", root);
  const tell = problemOf(root);
  const focused = document.activeElement;
  tell("");
  root.setAttribute("aria-busy", "true");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    await work();
  } catch (error) {
    tell(reason(error));
  } finally {
    root.removeAttribute("aria-busy");
    buttons.forEach((button) => { button.disabled = false; });
    if (focused?.isConnected && document.activeElement === document.body) focused.focus({ preventScroll: true });
  }
}

function submit(form, button) {
  const { api, fields } = { ...form.dataset, ...button?.dataset };
  const without = all("fieldset[data-choose]", form).find((set) => !one("input:checked", set));
  if (without) return problemOf(form)(without.dataset.choose);
  const body = bodyOf(form, fields?.split(" "));
  if ("changes" in form.dataset && !Object.keys(body).length) return form.closest("dialog").close();
  const values = { ...known.get(form)?.values, ...collect(form) };
  return busy(form, async () => {
    if ("stream" in form.dataset) return stream(form, api, body);
    try {
      await finish(button ?? form, form, await call(api, values, body), values);
    } catch (error) {
      // Something is in the way that only its owner may give up: another dialog asks.
      if (error.status !== 409 || !form.dataset.conflict) throw error;
      form.closest("dialog").close();
      open(document.getElementById(form.dataset.conflict), values);
    }
  });
}

function press(button) {
  const values = around(button);
  return busy(button, async () => finish(button, button, await call(button.dataset.api, values, JSON.parse(button.dataset.body ?? "{}")), values));
}

// -- progress: form[data-stream] reads Ollama's lines -------------------------------------------------

async function* records(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", part; !(part = await reader.read()).done; ) {
    const lines = (rest + part.value).split("\n");
    rest = lines.pop();
    yield* lines.filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
}

const stay = (event) => event.preventDefault();
const gb = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;

function advance(form, record) {
  const [status, bar, amount] = ["[data-status]", "progress", "[data-amount]"].map((part) => one(part, form));
  const text = [record.backend, record.status].filter(Boolean).join(": ");
  // Only a new text is read out loud.
  if (text && status.textContent !== text) status.textContent = text;
  if (record.total) bar.value = (100 * (record.completed ?? 0)) / record.total;
  else bar.removeAttribute("value");
  amount.textContent = record.total ? `${gb(record.completed ?? 0)} of ${gb(record.total)}` : "";
}

async function stream(form, api, body) {
  const aborting = new AbortController(), stopper = one("[data-abort]", form), progress = one("[data-progress]", form);
  stopper.onclick = () => aborting.abort();
  stopper.hidden = progress.hidden = false;
  addEventListener("beforeunload", stay);
  let last = {};
  try {
    for await (last of records(await call(api, {}, body, aborting.signal))) {
      if (last.error) throw new Error(last.error);
      advance(form, last);
    }
    if (last.status !== "success") throw new Error("It ended too early. Start it again: it goes on where it was.");
    say("#said", phrase(form.dataset.said, body));
    changed();
  } finally {
    removeEventListener("beforeunload", stay);
    stopper.hidden = progress.hidden = true;
  }
}

// -- copying: [data-copy="id"] ------------------------------------------------------------------------

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.innerText.trim());
  } catch {
    // Over plain http there is no clipboard to write to: the older way needs a selection.
    getSelection().selectAllChildren(source);
    if (!document.execCommand("copy")) return say("#failed", "Your browser does not copy. The text is selected: copy it by hand.");
    getSelection().removeAllRanges();
  }
  const text = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = text; }, 2000);
}

// -- charts: the numbers under the pointer come from the table beside ----------------------------------

function readOut(event) {
  const svg = event.target.closest?.(".plot > svg");
  if (!svg) return;
  const chart = svg.closest(".chart"), rows = all("tbody tr", chart), box = svg.getBoundingClientRect();
  const row = rows[Math.min(rows.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * rows.length)))];
  const heads = all("thead th", chart).slice(1);
  const values = all("td", row).map((cell, index) => `${heads[index].textContent}: ${cell.textContent}`);
  one(".readout", chart).textContent = [one("th", row).textContent, ...values].join(" · ");
}

// -- one listener for each kind of event: live parts come and go ---------------------------------------

document.addEventListener("click", (event) => {
  const button = event.target.closest?.("button");
  if (!button || button.disabled) return;
  if (button.dataset.dialog) open(document.getElementById(button.dataset.dialog), around(button));
  else if ("close" in button.dataset) button.closest("dialog").close();
  else if (button.dataset.copy) copy(button);
  else if (button.dataset.api && button.type === "button") press(button);
});
document.addEventListener("submit", (event) => {
  if (!event.target.dataset.api) return;
  event.preventDefault();
  submit(event.target, event.submitter);
});
document.addEventListener("input", (event) => {
  if (event.target.dataset.filter) filter(event.target);
  const form = event.target.closest("form[data-api]");
  if (form) forget(form);
});
document.addEventListener("pointermove", readOut);

all("[data-live]").forEach((part) => shown.set(part.id, part.innerHTML));
showTimes(document);
filterAll();
setInterval(() => { if (!document.hidden) showTimes(document); }, REDRAW_MS);
listen();
