// The list of documents. The address holds the whole state of the view (task, filters, open document); the controls
// change the address. Words of models and data sets are inserted as text only, never as markup.
const ENDINGS = { truncated: "cut at the token limit", unfinished: "ends inside a thought" };
const PAGE = 200;  // rows added at a time
const find = (query, root = document) => root.querySelector(query);
const count = (number) => number.toLocaleString("en");
const documents = (number) => `${count(number)} document${number === 1 ? "" : "s"}`;

function make(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inside);
  return element;
}

async function unpack(name) {
  const binary = atob(JSON.parse(find(`#pack-${name}`).textContent));
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

let tasks = [];
let view = null;  // the parsed address
let matching = [];  // indices of the documents that pass the filters
let shown = 0;  // how many of them have a row

// #TASK/DOC_ID?right=ARM&wrong=ARM&behavior=KEY&ending=ARM.KIND&q=WORDS&arm=ARM; everything but TASK is optional.
// Null for any other address.
function read(hash) {
  const [path, query] = [hash.slice(1).split("?", 1)[0], hash.split("?").slice(1).join("?")];
  let [name, id] = path.split("/");
  try { name = decodeURIComponent(name); } catch { return null; }
  const place = tasks.findIndex((task) => task.task === name);
  if (place < 0) return null;
  const task = tasks[place], parameters = new URLSearchParams(query), outcomes = new Map();
  for (const [verdict, key] of [[1, "right"], [0, "wrong"]]) {
    for (const arm of parameters.getAll(key)) if (task.arms.includes(arm)) outcomes.set(task.arms.indexOf(arm), verdict);
  }
  const arms = parameters.getAll("arm").map((arm) => task.arms.indexOf(arm)).filter((arm) => arm >= 0);
  const document = id === undefined ? -1 : task.ids.findIndex((each) => String(each) === id);
  const behavior = task.behaviors.indexOf(parameters.get("behavior"));
  return { place, task, document, outcomes, behavior, ending: parameters.get("ending") || "", q: parameters.get("q") || "", arms };
}

function address(changes = {}) {
  const { task, document, outcomes, behavior, ending, q, arms } = { ...view, ...changes };
  const query = new URLSearchParams();
  for (const [verdict, key] of [[1, "right"], [0, "wrong"]]) {
    for (const [arm, each] of outcomes) if (each === verdict) query.append(key, task.arms[arm]);
  }
  if (behavior >= 0) query.append("behavior", task.behaviors[behavior]);
  if (ending) query.append("ending", ending);
  if (q) query.append("q", q);
  for (const arm of arms) query.append("arm", task.arms[arm]);
  const words = query.toString();
  const opened = document >= 0 ? `/${task.ids[document]}` : "";
  return `#${encodeURIComponent(task.task)}${opened}${words && `?${words}`}`;
}

const unfiltered = () => ({ outcomes: new Map(), behavior: -1, ending: "", q: "" });

function change(changes) {
  history.replaceState(null, "", address(changes));
  view = read(location.hash);
  list();
}

function filtered() {
  const { task, outcomes, behavior, ending, q } = view;
  const cut = ending.lastIndexOf("."), ended = ending && task.outcomes[task.arms.indexOf(ending.slice(0, cut))];
  const column = ended ? ended[ending.slice(cut + 1)] : null;
  const words = q.trim().toLowerCase();
  return [...task.ids.keys()].filter((i) =>
    [...outcomes].every(([arm, verdict]) => task.outcomes[arm].right[i] === verdict)
    && (behavior < 0 || task.used[i].includes(behavior))
    && (!column || column[i] === 1)
    && (!words || task.lower[i].includes(words)));
}

function list() {
  matching = filtered();
  shown = 0;
  find("ol.documents").replaceChildren();
  more();
  controls();
  const all = view.task.ids.length;
  const words = matching.length === all ? documents(all) : `${count(matching.length)} of ${documents(all)}`;
  const status = find(".counted [role=status]");
  if (status.textContent !== words) status.textContent = words;
  find(".clear").hidden = matching.length === all;
}

function more(least = PAGE) {
  const until = Math.min(matching.length, shown + least);
  find("ol.documents").append(...matching.slice(shown, until).map(row));
  shown = until;
  find(".more").hidden = shown === matching.length;
}

const verdict = (right) => make("span", { class: right ? "right" : "wrong" }, right ? "✓" : "✗");

function row(i) {
  const { task } = view, hybrid = task.outcomes[task.arms.indexOf("hybrid")];
  const verdicts = make("span", { class: "verdicts" }, ...listed(task).map((arm) => {
    const right = task.outcomes[arm].right[i];
    return make("span", {}, verdict(right), ` ${task.arms[arm]}`, make("span", { class: "sr" }, right ? " right" : " wrong"));
  }));
  const steered = hybrid && hybrid.steered[i] !== null ? `${count(hybrid.steered[i])} of ${count(hybrid.tokens[i])} steered` : "";
  return make("li", {}, make("a", { href: address({ document: i }), "data-document": i },
    make("span", { class: "id" }, String(task.ids[i])),
    make("span", { class: "words", dir: "auto" }, task.questions[i].slice(0, 240).replace(/\s+/g, " ")),
    verdicts,
    make("span", { class: "steered" }, steered)));
}

// The arms whose verdicts the list shows: those of base, hybrid and thinking that were run, else the first three.
const listed = (task) => (task.core.length ? task.core : [...task.arms.keys()].slice(0, 3));

function controls() {
  const { task } = view, choosing = find(".tasks").contains(document.activeElement);
  find(".tasks").replaceChildren(...(tasks.length < 2 ? [] : tasks.map((each) => {
    const button = make("button", { type: "button", "aria-pressed": String(each === task) }, each.task);
    button.addEventListener("click", () => change({ ...unfiltered(), task: each, arms: [] }));
    return button;
  })));
  if (choosing) find(".tasks [aria-pressed=true]").focus();
  matrices();
  const q = find("input[name=q]");
  if (q.value !== view.q) q.value = view.q;
  const used = task.behaviors.map((_, b) => task.used.filter((behaviors) => behaviors.includes(b)).length);
  options("behavior", view.behavior, [[-1, "any or no behavior"], ...task.behaviors.map((name, b) =>
    [b, `${b + 1} ${name} (${count(used[b])})`]).filter(([b]) => used[b] || b === view.behavior)]);
  const endings = [["", "any"]];
  for (const [arm, name] of task.arms.entries()) {
    for (const [kind, words] of Object.entries(ENDINGS)) {
      const times = task.outcomes[arm][kind].filter((value) => value === 1).length;
      if (times) endings.push([`${name}.${kind}`, `${name} ${words} (${count(times)})`]);
    }
  }
  options("ending", view.ending, endings);
}

function options(name, chosen, entries) {
  const select = find(`select[name=${name}]`);
  select.replaceChildren(...entries.map(([value, words]) => make("option", { value: String(value) }, words)));
  select.value = String(chosen);
  select.closest("label").hidden = entries.length < 2;
}

function matrices() {
  const { task } = view, arms = listed(task);
  const pairs = arms.length > 1 ? arms.slice(1).map((arm, i) => [arms[i], arm]) : [arms];
  const active = document.activeElement && document.activeElement.dataset.cell;
  find(".matrices").replaceChildren(...pairs.map((pair) => {
    const cells = pair.length > 1 ? [[1, 1], [0, 0], [0, 1], [1, 0]] : [[1], [0]];
    return make("fieldset", { class: "matrix" },
      make("legend", {}, pair.map((arm) => task.arms[arm]).join(" and ")),
      make("div", {}, ...cells.map((verdicts) => cell(pair, verdicts))));
  }));
  if (active) find(`[data-cell="${active}"]`)?.focus();
}

function cell(pair, verdicts) {
  const { task, outcomes } = view;
  const number = task.ids.filter((_, i) => pair.every((arm, k) => task.outcomes[arm].right[i] === verdicts[k])).length;
  const pressed = pair.every((arm, k) => outcomes.get(arm) === verdicts[k]);
  const only = verdicts.indexOf(1);
  const words = pair.length < 2 ? (verdicts[0] ? "right" : "wrong")
    : verdicts[0] === verdicts[1] ? `both ${verdicts[0] ? "right" : "wrong"}` : `only ${task.arms[pair[only]]} right`;
  const button = make("button", { type: "button", "aria-pressed": String(pressed), "data-cell": `${pair}:${verdicts}` },
    make("b", {}, count(number)), make("span", {}, words));
  button.addEventListener("click", () => {
    const chosen = new Map(outcomes);
    for (const [k, arm] of pair.entries()) pressed ? chosen.delete(arm) : chosen.set(arm, verdicts[k]);
    change({ outcomes: chosen });
  });
  return button;
}

let scrolled = 0;

// Show what the address says. The address of a section is not ours: the browser scrolls there.
function follow(first) {
  const next = read(location.hash);
  const opened = next !== null && next.document >= 0;
  const closing = document.body.classList.contains("reading") && !opened;
  const last = view && view.document;
  if (opened && !document.body.classList.contains("reading")) scrolled = window.scrollY;
  if (next !== null) view = next;
  if (!opened) view = { ...view, document: -1 };
  list();
  for (const part of document.querySelectorAll("body > header, main, body > footer")) part.hidden = opened;
  find("#document").hidden = !opened;
  document.body.classList.toggle("reading", opened);
  if (opened) {
    open();
  } else if (closing) {
    close();
    if (next === null) return find(`[id="${CSS.escape(location.hash.slice(1))}"]`)?.scrollIntoView({ behavior: "instant" });
    if (matching.includes(last)) while (shown <= matching.indexOf(last)) more();
    window.scrollTo({ top: scrolled, behavior: "instant" });
    const link = find(`[data-document="${last}"]`);
    (link || find("input[name=q]")).focus({ preventScroll: Boolean(scrolled) });
  } else if (first && next !== null) {
    find("#documents").scrollIntoView({ behavior: "instant" });
  }
}

async function start() {
  tasks = await Promise.all([...document.querySelectorAll("script.index")].map((held) => unpack(held.id.slice(5))));
  for (const task of tasks) task.lower = task.questions.map((question) => question.toLowerCase());
  view = { place: 0, task: tasks[0], document: -1, arms: [], ...unfiltered() };
  find("#explorer").hidden = false;
  find("form.filters").addEventListener("submit", (event) => event.preventDefault());
  find("input[name=q]").addEventListener("input", (event) => change({ q: event.target.value }));
  find("select[name=behavior]").addEventListener("change", (event) => change({ behavior: Number(event.target.value) }));
  find("select[name=ending]").addEventListener("change", (event) => change({ ending: event.target.value }));
  find(".clear").addEventListener("click", () => { change(unfiltered()); find("input[name=q]").focus(); });
  find(".more").addEventListener("click", () => more());
  new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) more(); }, { rootMargin: "600px" })
    .observe(find(".more"));
  window.addEventListener("hashchange", () => follow(false));
  follow(true);
  performance.mark("listed");
}
