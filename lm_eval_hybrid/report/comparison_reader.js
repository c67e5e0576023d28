// The open document: its question, and answers side by side, the hybrid's with its steered tokens marked.
const PART = 6000;  // characters after which a part of an answer ends at the next line
const MARK = 40;  // characters that a mark counts for
const KEPT = 12;  // unpacked blocks to keep
const blocks = new Map();
let opening = 0;
let tipped = null;  // the mark that the tip describes

function block(name) {
  const held = blocks.get(name) || unpack(name);
  blocks.delete(name);
  blocks.set(name, held);  // least recently used first
  if (blocks.size > KEPT) blocks.delete(blocks.keys().next().value);
  return held;
}

// The answer of arm `arm` (-1: the document itself) to document i; null where the page leaves it out.
async function packed(place, task, arm, i) {
  const number = task.blocks[arm + 1].findIndex(([start, end]) => start <= i && i < end);
  return number < 0 ? null : (await block(`${place}-${arm}-${number}`))[i - task.blocks[arm + 1][number][0]];
}

async function open() {
  const mine = ++opening, { place, task, document: i, arms } = view;
  hide();
  const at = matching.indexOf(i);
  const title = `${task.task}, document ${task.ids[i]}`;
  find("#opened").textContent = document.title = title;
  find(".where").textContent = at < 0 ? "does not match the filters" : `${count(at + 1)} of ${documents(matching.length)}`;
  find(".back").setAttribute("href", address({ document: -1 }));
  find(".previous").disabled = at <= 0;
  find(".next").disabled = at < 0 ? !matching.length : at === matching.length - 1;
  const chosen = arms.length ? arms : listed(task);
  chooser(chosen);
  window.scrollTo({ top: 0, behavior: "instant" });
  find("#opened").focus({ preventScroll: true });
  const [asked, ...answers] = await Promise.all([-1, ...chosen].map((arm) => packed(place, task, arm, i)));
  if (mine !== opening) return;
  const [question, target, prompt] = asked || [task.questions[i], null, null];
  find(".asked").replaceChildren(
    make("div", {}, make("h3", {}, "Question"), words(question)),
    target === null ? "" : make("div", {}, make("h3", {}, "Right answer"), words(target)),
    prompt === null ? "" : make("details", {}, make("summary", {}, "Prompt, as the models read it"), words(prompt)));
  const columns = chosen.map((arm, k) => column(task, arm, i, answers[k]));
  find(".answers").replaceChildren(...columns.map(([element]) => element));
  for (const [, text, pieces] of columns) await draw(text, pieces, () => mine === opening);
  if (mine === opening) find("#document").dataset.drawn = title;
}

function close() {
  opening++;
  hide();
  document.title = find("h1").textContent;
  delete find("#document").dataset.drawn;
}

const words = (text) => make("div", { class: "text", dir: "auto" }, text);

function chooser(chosen) {
  const { task } = view;
  const active = document.activeElement && document.activeElement.dataset.arm;
  find(".choose").replaceChildren(...task.arms.map((name, arm) => {
    const on = chosen.includes(arm);
    const button = make("button", { type: "button", "aria-pressed": String(on), "data-arm": arm }, name);
    button.addEventListener("click", () => {
      const next = on ? chosen.filter((each) => each !== arm) : [...chosen, arm].sort((a, b) => a - b);
      if (!next.length) return;
      const same = String(next) === String(listed(task));
      history.replaceState(null, "", address({ arms: same ? [] : next }));
      view = read(location.hash);
      const top = window.scrollY;
      open();
      window.scrollTo({ top, behavior: "instant" });
      find(`[data-arm="${arm}"]`).focus({ preventScroll: true });
    });
    return button;
  }));
  if (active) find(`[data-arm="${active}"]`)?.focus();
}

// An arm's answer: its element, the element for its text, and the text's pieces.
function column(task, arm, i, answer) {
  const outcome = task.outcomes[arm], right = outcome.right[i], name = task.arms[arm];
  const facts = [];
  if (outcome.tokens[i] !== null) facts.push(`${count(outcome.tokens[i])} tokens`);
  if (name === "hybrid" && outcome.steered[i] !== null) facts.push(`${count(outcome.steered[i])} steered`);
  for (const [kind, words] of Object.entries(ENDINGS)) if (outcome[kind][i] === 1) facts.push(words);
  const text = make("div", { class: "text", dir: "auto" });
  const pieces = answer === null ? [] : typeof answer[0] === "string" ? [answer[0]] : answer[0];
  const element = make("section", { class: name === "hybrid" ? "answer hybrid" : "answer" },
    make("h3", {}, name, make("span", { class: "verdict" }, verdict(right), right ? " right" : " wrong")),
    make("p", { class: "facts" }, facts.join(" · ")),
    ...legend(task, pieces),
    answer === null ? make("p", { class: "note" }, "Left out to keep the page small.") : text,
    ...(answer !== null && answer[1] !== null ? [make("p", { class: "read" }, `Read answer: ${answer[1] || "none"}`)] : []));
  return [element, text, pieces];
}

function legend(task, pieces) {
  const used = new Map();
  for (const piece of pieces) if (typeof piece !== "string") used.set(piece[1], (used.get(piece[1]) || 0) + 1);
  if (!used.size) return [];
  const entries = [...used].sort(([a], [b]) => a - b).map(([behavior, times]) =>
    make("li", {}, tag(behavior), ` ${task.behaviors[behavior]} `, make("span", { class: "soft" }, count(times))));
  return [make("ul", { class: "legend", "aria-label": "Behaviors in this answer" }, ...entries)];
}

const colour = (behavior) => `b${behavior % COLOURS}`;
const tag = (behavior) => make("span", { class: `tag ${colour(behavior)}` }, String(behavior + 1));
const rest = () => new Promise((done) => setTimeout(done));

// An answer in parts that the browser lays out separately, as they come into view: long answers have tens of thousands
// of marks. A part ends at the end of a line, or without lines, at the end of a piece.
function* parts(pieces) {
  const lines = (text) => text.split(/(?<=\n)/).flatMap((line) => line.match(/[^]{1,20000}/gu));
  let part = [], weight = 0;
  for (const piece of pieces.flatMap((each) => (typeof each === "string" ? lines(each) : [each]))) {
    part.push(piece);
    weight += typeof piece === "string" ? piece.length : MARK;
    if (weight > 2 * PART || (weight > PART && typeof piece === "string" && piece.endsWith("\n"))) {
      yield part;
      [part, weight] = [[], 0];
    }
  }
  yield part;
}

// Insert an answer's pieces, letting the browser respond after each part; stop when `current()` is false.
async function draw(text, pieces, current) {
  const held = [...parts(pieces)];
  for (const [i, part] of held.entries()) {
    if (i) await rest();
    if (!current()) return;
    const drawn = part.flatMap((piece, k) => drawnPiece(piece, !i && !k));
    text.append(...(held.length > 1 ? [make("div", { class: "part" }, ...drawn)] : drawn));
    if (!text.querySelector("mark[tabindex='0']")) text.querySelector("mark")?.setAttribute("tabindex", "0");
  }
}

// An answer's leading space would only indent its first word.
function drawnPiece(piece, begins) {
  if (typeof piece === "string") return [begins ? piece.trimStart() : piece];
  const [whole, behavior, , , changed] = piece, inner = whole.trim();
  const before = inner ? whole.slice(0, whole.indexOf(inner)) : "", after = inner ? whole.slice(before.length + inner.length) : "";
  const glyph = inner ? null : whole === "" ? "◌" : whole.includes("\n") ? "↵" : "␣";
  const mark = make("mark", {
    class: changed ? colour(behavior) : `${colour(behavior)} same`, tabindex: "-1", "data-n": behavior + 1, "data-glyph": glyph,
  }, inner || whole);
  mark.piece = piece;
  return [begins ? "" : before, mark, after];
}

// A token's text with its invisible characters made visible.
const visible = (text) => text.replace(/^ | $/g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "◌";
const percent = (share) => (share === null ? "–" : share >= 0.9995 && share < 1 ? ">99.9%" : share > 0 && share < 0.0005
  ? "<0.1%" : `${(100 * share).toFixed(1)}%`);

function show(mark) {
  const [text, behavior, coefficient, window_, changed, taken, base, baseP, thinking, thinkingP] = mark.piece;
  const { task } = view, line = (head, value, beside) => make("tr", {}, make("th", { scope: "row" }, head),
    make("td", {}, value), make("td", {}, beside));
  const token = (words) => make("code", { dir: "auto" }, visible(words));
  const lines = [];
  if (base !== null) lines.push(line("base's choice", token(base), percent(baseP)));
  if (thinking !== null) lines.push(line("thinking model's choice", token(thinking), percent(thinkingP)));
  lines.push(line("emitted", token(text), taken === null ? "" : `${percent(taken)} by thinking`));
  if (coefficient !== null) lines.push(line("coefficient", coefficient.toFixed(2), ""));
  if (window_ !== null) lines.push(line("window", window_ ? `${window_} position${window_ === 1 ? "" : "s"}` : "all positions", ""));
  const steered = base === null ? "Steered." : changed ? "Steered and changed." : "Steered, but not changed: it is the base's own choice.";
  const tip = find("#tip");
  tip.replaceChildren(make("b", {}, `${behavior + 1} ${task.behaviors[behavior]}`), make("div", {}, steered),
    make("table", {}, make("tbody", {}, ...lines)));
  if (tipped) tipped.removeAttribute("aria-describedby");
  tipped = mark;
  mark.setAttribute("aria-describedby", "tip");
  tip.hidden = false;
  const box = mark.getClientRects()[0] || mark.getBoundingClientRect();
  const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const below = box.bottom + 6 + tip.offsetHeight > document.documentElement.clientHeight && box.top > tip.offsetHeight + 6;
  tip.style.left = `${left + window.scrollX}px`;
  tip.style.top = `${(below ? box.top - tip.offsetHeight - 6 : box.bottom + 6) + window.scrollY}px`;
}

let leaving = 0;

function hide() {
  clearTimeout(leaving);
  if (tipped) tipped.removeAttribute("aria-describedby");
  tipped = null;
  find("#tip").hidden = true;
}

function step(by) {
  const at = matching.indexOf(view.document), next = at < 0 ? matching[0] : matching[at + by];
  if (next === undefined) return;
  history.replaceState(null, "", address({ document: next }));
  view = read(location.hash);
  open();
}

// Move between the marks of an answer; only one of them is in the tab order.
function along(mark, key) {
  const marks = [...mark.closest(".text").querySelectorAll("mark")], at = marks.indexOf(mark);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: marks.length - 1 }[key];
  if (!marks[to]) return;
  mark.tabIndex = -1;
  marks[to].tabIndex = 0;
  marks[to].focus();
}

// j and k move between the rows of the list.
function down(by) {
  const rows = [...document.querySelectorAll("[data-document]")];
  const at = rows.indexOf(document.activeElement);
  const to = rows[at < 0 ? 0 : at + by];
  if (to) to.focus();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea")) return;
  const reading = !find("#document").hidden, mark = event.target.closest?.("mark"), key = event.key;
  const handled = () => event.preventDefault();
  if (key === "Escape" && !find("#tip").hidden) { handled(); hide(); }
  else if (key === "Escape" && reading) { handled(); location.hash = address({ document: -1 }); }
  else if (mark && ["ArrowRight", "ArrowLeft", "Home", "End"].includes(key)) { handled(); along(mark, key); }
  else if (reading && ["j", "ArrowRight"].includes(key)) { handled(); step(1); }
  else if (reading && ["k", "ArrowLeft"].includes(key)) { handled(); step(-1); }
  else if (!reading && "jk".includes(key)) { handled(); down(key === "j" ? 1 : -1); }
}

const answers = find(".answers");
const touched = (event) => event.target.closest?.("mark");
answers.addEventListener("focusin", (event) => { if (touched(event)) show(touched(event)); });
answers.addEventListener("focusout", hide);
answers.addEventListener("pointerover", (event) => { if (touched(event)) { clearTimeout(leaving); show(touched(event)); } });
// The tip stays while the pointer is on it or on its mark.
for (const part of [answers, find("#tip")]) {
  part.addEventListener("pointerout", () => {
    clearTimeout(leaving);
    leaving = setTimeout(() => { if (document.activeElement !== tipped) hide(); }, 150);
  });
}
find("#tip").addEventListener("pointerover", () => clearTimeout(leaving));
window.addEventListener("resize", hide);
find(".previous").addEventListener("click", () => step(-1));
find(".next").addEventListener("click", () => step(1));
document.addEventListener("keydown", press);
start().catch((error) => {
  const reason = typeof DecompressionStream === "undefined" ? "this browser is too old to unpack them" : error.message;
  find("#documents").append(make("p", { class: "note" }, `The documents cannot be shown: ${reason}.`));
});
