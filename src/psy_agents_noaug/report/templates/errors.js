// Predictions are columns of numbers; what is shown is made when it is shown. Text is never read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const column = (name) => data.columns[name] || [];
const at = (name, i) => column(name)[i];
const $ = (id) => document.getElementById(id);
const filters = $("filters").elements;
const STEP = 50;

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const titleOf = (i) => `${data.posts[at("post", i)].id} · ${data.criteria[at("criterion", i)][0]}`;
const shown = (value, digits = 3) => (value == null ? "–" : value.toFixed(digits));

// ---------------------------------------------------------------------------------- filters and list

let chosen = [];
let current = -1;
let nListed = 0;

function fillFilters() {
  const option = (value, text) => element("option", { value, textContent: text });
  filters.split.append(...data.splits.map((name, i) => option(i, name)));
  filters.criterion.append(option("", "all"), ...data.criteria.map(([id, name], i) => option(i, `${id} ${name}`)));
  const present = new Set(column("kind"));
  filters.kind.append(option("errors", "all errors"));
  data.kinds.forEach((name, i) => { if (present.has(i)) filters.kind.append(option(i, name)); });
  if (filters.seed) {
    const seeds = [...new Set(column("seed"))];
    filters.seed.append(...seeds.map((seed) => option(seed, seed)), option("", "all"));
  }
  if (data.columns.quality) filters.kind.append(option("suspected", "suspected label errors"));
  filters.kind.append(option("", "all"));
}

const number = (field) => (field.value === "" ? null : Number(field.value));

function choose() {
  const split = Number(filters.split.value);
  const { kind, criterion, order } = Object.fromEntries(new FormData($("filters")));
  const [confidence, least, most] = [filters.confidence, filters.least, filters.most].map(number);
  const post = filters.post.value.trim();
  chosen = [];
  for (let i = 0; i < data.n; i++) {
    if (at("split", i) !== split) continue;
    if (criterion !== "" && at("criterion", i) !== Number(criterion)) continue;
    if (kind === "errors" ? at("kind", i) === 0
      : kind === "suspected" ? !at("suspected", i)
        : kind !== "" && at("kind", i) !== Number(kind)) continue;
    if (filters.seed && filters.seed.value !== "" && at("seed", i) !== Number(filters.seed.value)) continue;
    if (confidence !== null && !(at("confidence", i) >= confidence)) continue;
    const { id, words } = data.posts[at("post", i)];
    if ((least !== null && words < least) || (most !== null && words > most)) continue;
    if (post && !id.includes(post)) continue;
    chosen.push(i);
  }
  const by = (name, sign) => (a, b) => {
    const [x, y] = [at(name, a) ?? null, at(name, b) ?? null];
    return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
  };
  if (order === "confidence") chosen.sort(by("confidence", -1));
  if (order === "quality") chosen.sort(by("quality", 1));
  nListed = 0;
  $("list").replaceChildren();
  list();
  go(chosen.length ? 0 : -1, false);
}

function list() {
  const items = chosen.slice(nListed, nListed + STEP).map((i, k) => {
    const place = nListed + k;
    const facts = [data.kinds[at("kind", i)], shown(at("confidence", i))];
    const button = element("button", { type: "button" }, titleOf(i), element("small", {}, facts.join(" · ")));
    button.addEventListener("click", () => go(place, true));
    return element("li", {}, button);
  });
  $("list").append(...items);
  nListed += items.length;
  $("more").hidden = nListed >= chosen.length;
}

function go(place, takesFocus) {
  const buttons = $("list").children;
  buttons[current]?.firstChild.removeAttribute("aria-current");
  current = place;
  while (current >= nListed && nListed < chosen.length) list();
  $("previous").disabled = current <= 0;
  $("next").disabled = current >= chosen.length - 1;
  $("count").textContent = chosen.length
    ? `${current + 1} of ${chosen.length} predictions`
    : "No prediction is chosen. Change the filters.";
  const button = buttons[current]?.firstChild;
  button?.setAttribute("aria-current", "true");
  if (button) {
    const box = $("list");
    const top = button.parentElement.offsetTop - box.offsetTop;
    if (top < box.scrollTop || top + button.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - 40;
  }
  showPair(takesFocus);
}

// ------------------------------------------------------------------------------------------ one pair

function spansOf(i) {
  const post = data.posts[at("post", i)];
  const own = post.spans.filter(([criterion]) => criterion === at("criterion", i));
  const spans = own.map(([, start, end, met]) =>
    ({ start, end, kind: met ? "gold" : "denied", tag: met ? "gold" : "not evidence" }));
  for (const [start, end, score, right] of at("predicted", i) || []) {
    const verdict = right === null ? "" : right ? ", right" : ", wrong";
    spans.push({ start, end, kind: "predicted", tag: `predicted ${shown(score)}${verdict}` });
  }
  const judged = at("judged", i);
  if (Array.isArray(judged)) spans.push({ start: judged[0], end: judged[1], kind: "judged", tag: "judged" });
  return spans;
}

// Code points, as Python counts them: a character may be two units of a JavaScript string.
function highlighted(characters, spans) {
  const borders = new Set([0, characters.length]);
  for (const { start, end } of spans) borders.add(start).add(end);
  const places = [...borders].sort((a, b) => a - b);
  const pieces = [];
  places.slice(0, -1).forEach((start, n) => {
    const end = places[n + 1];
    for (const span of spans) {
      if (span.start === start) pieces.push(element("span", { className: "tag", textContent: span.tag }));
    }
    const kinds = spans.filter((span) => span.start <= start && end <= span.end).map((span) => span.kind);
    const text = characters.slice(start, end).join("");
    pieces.push(kinds.length ? element("span", { className: [...new Set(kinds)].join(" ") }, text) : text);
    for (const span of spans) {
      if (span.end === end) {
        pieces.push(element("span", { className: "tag hidden", textContent: `end of ${span.tag}` }));
      }
    }
  });
  return pieces;
}

function facts(i) {
  const words = data.posts[at("post", i)].words;
  const rows = [["label", at("label", i)]];
  const add = (name, key, digits) => { if (data.columns[key]) rows.push([name, shown(at(key, i), digits)]); };
  add("decision", "decision", 0);
  add("probability", "probability");
  add("threshold", "threshold");
  add(data.is_probability ? "confidence" : "margin", "confidence");
  add("label quality", "quality");
  add("seed", "seed", 0);
  rows.push(["words", words]);
  return element("dl", { className: "facts" },
    ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

function showPair(takesFocus) {
  const article = $("pair");
  article.replaceChildren();
  if (current < 0) return;
  const i = chosen[current];
  const post = data.posts[at("post", i)];
  const title = element("h3", { id: "pair-title", tabIndex: -1 },
    `${post.id} · ${data.criteria[at("criterion", i)].join(" ")}: ${data.kinds[at("kind", i)]}`);
  const suspected = at("suspected", i) ? [element("p", { className: "wrong" }, "The label is suspected to be wrong.")] : [];
  const wording = typeof at("judged", i) === "string" ? [element("p", {}, "Judged sentence: ", element("q", {}, at("judged", i)))] : [];
  const text = element("div", { className: "post", id: "text", tabIndex: 0 }, ...highlighted(Array.from(post.text), spansOf(i)));
  text.setAttribute("role", "region");
  text.setAttribute("aria-label", "Text of the post");
  article.append(title, facts(i), ...suspected, ...wording, text, correctionForm(i, post));
  if (takesFocus) title.focus();
}

// --------------------------------------------------------------------------------------- corrections

const corrections = new Map();
let isSaved = true;

const pairKey = (i) => JSON.stringify([data.posts[at("post", i)].id, data.criteria[at("criterion", i)][0]]);
const isEmpty = (own) => own.label === "" && !own.spans.length && !own.note.trim();

function kept(action) {
  try {
    return action(window.localStorage);
  } catch {
    return undefined; // a browser may refuse storage to files
  }
}

function remember(isNew = true) {
  isSaved = !isNew;
  const isKept = kept((storage) => {
    storage.setItem(data.storage, JSON.stringify([...corrections]));
    return true;
  });
  $("kept").textContent = isKept
    ? "This browser keeps the corrections, notes included, for this file until you discard them."
    : "This browser keeps nothing for files: save the corrections before you leave the page.";
  showCorrections();
}

function showCorrections() {
  $("n-corrections").textContent = corrections.size === 1 ? "1 pair is corrected or has a note."
    : `${corrections.size} pairs are corrected or have a note.`;
  $("corrected").replaceChildren(...[...corrections].map(([key, own]) => {
    const parts = [];
    if (own.label !== "") parts.push(`label ${own.label}`);
    if (own.spans.length) parts.push(own.spans.length === 1 ? "1 span" : `${own.spans.length} spans`);
    if (own.note.trim()) parts.push("note");
    return element("li", {}, `${JSON.parse(key).join(" · ")}: ${parts.join(", ")}`);
  }));
  $("save").disabled = $("discard").disabled = corrections.size === 0;
}

function faultOf(own, length) {
  const bad = own.spans.some(({ start, end }) =>
    !(Number.isInteger(start) && Number.isInteger(end) && 0 <= start && start < end && end <= length));
  if (bad) return `A span must begin before it ends, and be within 0 and ${length}.`;
  const clash = own.spans.some((a) => own.spans.some((b) => a.label !== b.label && a.start < b.end && b.start < a.end));
  if (clash) return "A span cannot be evidence and not evidence where they overlap.";
  if (own.label === "0" && own.spans.some((span) => span.label !== "0")) {
    return "A pair that is not met has no evidence: mark its spans as not evidence, or leave the label.";
  }
  return "";
}

function correctionForm(i, post) {
  const key = pairKey(i);
  const length = Array.from(post.text).length;
  const own = corrections.get(key) || { label: "", spans: [], note: "" };
  const fault = element("p", { className: "wrong" });
  fault.setAttribute("role", "status");
  const changed = () => {
    if (isEmpty(own)) corrections.delete(key);
    else corrections.set(key, own);
    fault.textContent = faultOf(own, length);
    remember();
  };
  const choice = (value, options, label, set) => {
    const made = element("select", {}, ...options.map(([v, text]) => element("option", { value: v, textContent: text })));
    made.value = value;
    made.addEventListener("change", () => { set(made.value); changed(); });
    return element("label", {}, label, made);
  };
  const labels = data.labels.map((value) => [String(value), ["0: not met", "1: met"][value] || String(value)]);
  const label = choice(own.label, [["", "leave it as it is"], ...labels], "Label of the pair ", (value) => { own.label = value; });

  const box = element("ul", { className: "spans" });
  const showSpans = () => box.replaceChildren(...own.spans.map((span, n) => {
    const quote = element("q");
    const quoted = () => {
      const words = Array.from(post.text).slice(span.start, span.end).join("");
      quote.textContent = words.length > 120 ? `${words.slice(0, 117)}…` : words;
    };
    const offset = (name, text) => {
      const input = element("input", { type: "number", min: 0, max: length, value: span[name] ?? "" });
      input.addEventListener("input", () => { span[name] = number(input); quoted(); changed(); });
      return element("label", {}, text, input);
    };
    const kind = choice(span.label, [["1", "evidence"], ["0", "not evidence"]], `Span ${n + 1} is `, (value) => { span.label = value; });
    const remove = element("button", { type: "button" }, "Remove");
    remove.setAttribute("aria-label", `Remove span ${n + 1}`);
    remove.addEventListener("click", () => { own.spans.splice(n, 1); showSpans(); changed(); });
    quoted();
    return element("li", {}, kind, offset("start", "Start "), offset("end", "End "), remove, quote);
  }));
  const add = (text, spanNow) => {
    const button = element("button", { type: "button" }, text);
    // The selection would be gone with the focus.
    button.addEventListener("pointerdown", (event) => event.preventDefault());
    button.addEventListener("click", () => {
      const span = spanNow();
      if (!span) {
        fault.textContent = "Select a part of the post first, or type the numbers.";
        return;
      }
      own.spans.push(span);
      showSpans();
      changed();
    });
    return button;
  };
  const selected = (value) => () => {
    const range = selectedRange();
    return range && { label: value, start: range[0], end: range[1] };
  };
  const buttons = [
    add("Selected text is evidence", selected("1")),
    add("Selected text is not evidence", selected("0")),
    add("Type a span", () => ({ label: "1", start: null, end: null })),
  ];
  const judged = at("judged", i);
  if (Array.isArray(judged)) {
    const ofSentence = (value) => () => ({ label: value, start: judged[0], end: judged[1] });
    buttons.unshift(add("The judged sentence is evidence", ofSentence("1")), add("The judged sentence is not", ofSentence("0")));
  }
  const note = element("textarea", { rows: 2, value: own.note });
  note.addEventListener("input", () => { own.note = note.value; changed(); });
  showSpans();
  fault.textContent = faultOf(own, length);
  return element("fieldset", {}, element("legend", {}, "Correct this pair"), label, box,
    element("div", { className: "steps" }, ...buttons), fault, element("label", {}, "Note ", note));
}

// The selection in the post as code points, without the tags that stand between the words.
function selectedRange() {
  const selection = window.getSelection();
  const box = $("text");
  if (!selection.rangeCount || selection.isCollapsed) return null;
  const range = selection.getRangeAt(0);
  if (!box.contains(range.startContainer) || !box.contains(range.endContainer)) return null;
  const before = (node, offset) => {
    const part = document.createRange();
    part.selectNodeContents(box);
    part.setEnd(node, offset);
    const copy = part.cloneContents();
    for (const tag of copy.querySelectorAll(".tag")) tag.remove();
    return Array.from(copy.textContent);
  };
  const start = before(range.startContainer, range.startOffset).length;
  const characters = before(range.endContainer, range.endOffset).slice(start);
  const isSpace = (character) => character.trim() === "";
  const first = characters.findIndex((character) => !isSpace(character));
  if (first < 0) return null;
  let last = characters.length;
  while (isSpace(characters[last - 1])) last--;
  return [start + first, start + last];
}

const HEAD = ["post_id", "criterion_id", "label", "start_char", "end_char", "note"];

function csv() {
  const rows = [HEAD];
  for (const [key, own] of corrections) {
    const lines = own.label === "" ? [] : [[own.label, "", ""]];
    for (const { label, start, end } of own.spans) lines.push([label, start ?? "", end ?? ""]);
    if (!lines.length) lines.push(["", "", ""]);
    lines.forEach((line, n) => rows.push([...JSON.parse(key), ...line, n ? "" : own.note.trim()]));
  }
  // A spreadsheet runs a note that begins like a formula (OWASP, "CSV Injection").
  const safe = (cell, n) => (n === 5 && /^[=+\-@\t\r]/.test(cell) ? `'${cell}` : String(cell));
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return rows.map((row) => row.map((cell, n) => quoted(safe(cell, n))).join(",")).join("\n") + "\n";
}

function save() {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  const link = element("a", { href: url, download: "corrections.csv" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  isSaved = true;
}

function cellsOf(text) {
  const rows = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n|$)/g)) {
    rows.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === "") break;
    if (end !== ",") rows.push([]);
  }
  return rows.filter((row) => row.length > 1);
}

async function load(file) {
  const [head, ...rows] = cellsOf((await file.text()).replace(/^\uFEFF/, ""));
  if (String(head) !== String(HEAD)) {
    $("kept").textContent = `The file must begin with ${HEAD.join(",")}.`;
    return;
  }
  for (const [post, criterion, label, start, end, note] of rows) {
    const key = JSON.stringify([post, criterion]);
    const own = corrections.get(key) || { label: "", spans: [], note: "" };
    if (start !== "") own.spans.push({ label, start: Number(start), end: Number(end) });
    else if (label !== "") own.label = label;
    if (note) own.note = own.note ? `${own.note}\n${note}` : note;
    corrections.set(key, own);
  }
  remember();
  showPair(false);
}

// --------------------------------------------------------------------------------------------- start

const move = (by) => { if (chosen[current + by] !== undefined) go(current + by, true); };
const KEYS = { n: () => move(1), j: () => move(1), p: () => move(-1), k: () => move(-1), "/": () => filters.split.focus() };

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select");
  if (!$("keys").checked || isTyping || event.ctrlKey || event.altKey || event.metaKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
window.addEventListener("beforeunload", (event) => { if (!isSaved && !kept((s) => s.getItem(data.storage))) event.preventDefault(); });
$("filters").addEventListener("input", choose);
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("previous").addEventListener("click", () => move(-1));
$("next").addEventListener("click", () => move(1));
$("more").addEventListener("click", list);
$("save").addEventListener("click", save);
$("load").addEventListener("change", (event) => { if (event.target.files[0]) load(event.target.files[0]); });
$("discard").addEventListener("click", () => {
  if (!window.confirm("Discard all corrections and notes of this page?")) return;
  corrections.clear();
  remember(false);
  showPair(false);
});
for (const [key, own] of kept((storage) => JSON.parse(storage.getItem(data.storage) || "[]")) || []) corrections.set(key, own);
fillFilters();
remember(false);
if (window.matchMedia("(max-width: 60rem)").matches) $("all").open = false;
choose();
