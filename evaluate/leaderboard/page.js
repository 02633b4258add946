"use strict";
// Every text from the data enters the page as a text node: names of checkpoints are data, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function path(row, file) { // a record of another folder (the run was renamed) is there by its whole path
  if (file === null) return null;
  return data.files[file].includes("/") ? data.files[file] : `${row.folder}/${data.files[file]}`;
}

// ---- the data, unpacked once: row.cells is a Map from column number to a score with its record
data.rows.forEach((row, place) => {
  row.place = place;
  row.baseline = row.kind === "baseline";
  row.text = [row.name, row.label, row.backbone, row.objective].filter(Boolean).join(" ").toLowerCase();
  row.cells = new Map();
  for (const [at, [shared, extra, seconds, memory, date, file, cells, pictures = []]] of row.records.entries()) {
    const curves = row.curves?.[at] ?? [];
    const record = { shared: data.shared[shared], extra: data.extra[extra], seconds, memory, date, file: path(row, file), curves, pictures };
    for (const [column, value, low, high, n, mark] of cells) row.cells.set(column, { value, low, high, n, mark, record });
  }
  row.gaps = new Map(row.missing.map(([task, dataset, ...rest]) => [task + "\n" + dataset, rest]));
});
for (const [row, column, mark] of data.marks) data.rows[row].cells.get(column).folded = mark;

// ---- the seeds of a recipe as one row; a cell of it holds the seeds' own cells
const recipes = data.seeds.map((mean) => {
  const seeds = mean.rows.map((at) => data.rows[at]);
  const first = seeds[0];
  const row = { ...first, name: mean.name, label: mean.label, seed: undefined, seeds, cells: new Map(), training: undefined };
  row.place = seeds.reduce((sum, seed) => sum + seed.place, 0) / seeds.length;
  row.text = seeds.map((seed) => seed.text).join(" ");
  for (const seed of seeds) {
    seed.folds = true;
    for (const [column, cell] of seed.cells) row.cells.set(column, { ...cell, of: seed }); // alone, where others lack it
  }
  for (const [column, value, deviation, count, low, high, mark] of mean.values) {
    row.cells.set(column, { value, deviation, count, low, high, mark, seeds: seeds.filter((seed) => seed.cells.has(column)) });
  }
  return row;
});
const rowsBy = { each: data.rows, folded: [...recipes, ...data.rows.filter((row) => !row.folds)] };

function scale(rows, number) { // what whiskers of a column are drawn on
  let low = Infinity, high = -Infinity;
  const methods = rows.filter((row) => !row.baseline && row.cells.has(number));
  for (const row of methods.length ? methods : rows) { // a baseline far below would squeeze all whiskers together
    const cell = row.cells.get(number);
    if (!cell || cell.value === null) continue;
    low = Math.min(low, cell.low ?? cell.value);
    high = Math.max(high, cell.high ?? cell.value);
  }
  const margin = (high - low) * 0.04 || 1;
  return { low: low - margin, span: high - low + 2 * margin };
}

data.columns.forEach((column, number) => {
  column.number = number;
  column.place = column.task + "\n" + column.dataset;
  column.scales = { each: scale(rowsBy.each, number), folded: recipes.length ? scale(rowsBy.folded, number) : null };
});

function view() {
  return recipes.length && $("fold").checked ? "folded" : "each";
}

function mark(cell) {
  return view() === "folded" ? cell.folded ?? cell.mark : cell.mark;
}

const SPOKEN = ["", ", tied with the best", ", best"];
const backbones = new Set(data.rows.filter((row) => !row.baseline).map((row) => row.backbone));
const shared = { backbone: backbones.size === 1 ? [...backbones][0] : "" }; // said once, above the table
const shownCells = new WeakMap(); // button -> what its dialog shows
const state = { sort: null, direction: 1, page: 0, focus: [0, 0] };

function number(value, scale) {
  if (value === null || value === undefined) return "undefined";
  return scale === "fraction" ? (100 * value).toFixed(2) : String(Number(value.toPrecision(4)));
}

function unit(scale) {
  return scale === "fraction" ? "%" : scale;
}

// ---- what is shown
function visibleColumns() {
  const [task, dataset, protocol] = ["task", "dataset", "protocol"].map((id) => $(id).value);
  return data.columns.filter((column) =>
    (!task || column.task === task) && (!dataset || column.dataset === dataset) && (column.better !== 0 || $("every").checked) &&
    (!protocol || settings(column).includes(protocol)));
}

function settings(column) {
  return Object.entries(column.protocol).map(([name, value]) => `${name} = ${value}`);
}

function visibleRows(columns) {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const objective = $("objective").value;
  const rows = rowsBy[view()].filter((row) =>
    (!objective || row.objective === objective) && ($("baselines").checked || !row.baseline) && ($("steps").checked || !row.step) &&
    words.every((word) => row.text.includes(word)) &&
    columns.some((c) => row.cells.has(c.number) || row.gaps.has(c.place)));
  return rows.sort((a, b) => a.baseline - b.baseline || compare(a, b) || a.place - b.place);
}

function compare(a, b) {
  if (state.sort === null) return 0;
  if (state.sort === "name") return state.direction * a.name.localeCompare(b.name, "en", { numeric: true });
  const [x, y] = [a, b].map((row) => row.cells.get(state.sort)?.value ?? null);
  if (x === null || y === null) return (x === null) - (y === null);
  return state.direction * (x - y);
}

// ---- drawing
function draw() {
  const columns = visibleColumns();
  if (state.sort !== null && state.sort !== "name" && !columns.some((column) => column.number === state.sort)) state.sort = null;
  const rows = visibleRows(columns);
  const size = Number($("size").value);
  const pages = Math.max(1, Math.ceil(rows.length / size));
  state.page = Math.min(state.page, pages - 1);
  const shown = rows.slice(state.page * size, (state.page + 1) * size);
  const table = document.querySelector("#scores table");
  table.tHead.replaceChildren(...head(columns));
  table.tBodies[0].replaceChildren(...shown.map((row, i) => line(row, columns, i)));
  if (!shown.length) table.tBodies[0].append(make("tr", {}, make("td", { class: "nothing", colspan: columns.length + 1 }, "Nothing matches these filters.")));
  state.focus = [0, 0];
  const first = table.querySelector("td button");
  if (first) first.tabIndex = 0;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page >= pages - 1;
  $("status").textContent = rows.length
    ? `${state.page * size + 1}–${state.page * size + shown.length} of ${rows.length} ${view() === "folded" ? "methods" : "checkpoints"}, ${columns.length} columns`
    : "No checkpoints";
  document.querySelectorAll(".legend .pictured").forEach((entry) => { entry.hidden = !table.querySelector("td .pictured"); });
}

function head(columns) {
  const groups = make("tr", {}, make("th", { class: "first", scope: "col" }));
  const names = make("tr", {}, header("name", "Checkpoint", "", "first"));
  let group = null;
  for (const column of columns) {
    if (group && group.task === column.task) group.cell.colSpan += 1;
    else {
      group = { task: column.task, cell: make("th", { scope: "colgroup" }, make("span", {}, column.task)) };
      groups.append(group.cell);
    }
    const arrow = { 1: " ↑", "-1": " ↓", 0: "" }[column.better];
    const metric = column.metric + (column.scale === "fraction" ? "" : ` [${column.scale}]`) + arrow;
    names.append(header(column.number, column.dataset, metric, "", column.differing));
  }
  return [groups, names];
}

function breakable(text) { // long names of metrics and settings may break after an underscore, dot or comma
  return text.split(/(?<=[_.,])/).flatMap((part, i) => (i ? [make("wbr"), part] : [part]));
}

function header(key, text, detail, kind, differing = "") {
  const sorted = state.sort === key;
  const button = make("button", { type: "button" }, text, ...[detail, differing].map((line) => line && make("small", {}, ...breakable(line))));
  button.addEventListener("click", () => sortBy(key));
  button.dataset.key = key;
  const order = sorted ? (state.direction > 0 ? "ascending" : "descending") : "none";
  return make("th", { scope: "col", "aria-sort": order, class: kind }, button);
}

function sortBy(key) {
  const best = key === "name" || data.columns[key].better < 0 ? 1 : -1; // best first; names from A
  if (state.sort !== key) [state.sort, state.direction] = [key, best];
  else if (state.direction === best) state.direction = -best;
  else state.sort = null;
  state.page = 0;
  draw();
  document.querySelector(`thead button[data-key="${key}"]`)?.focus();
}

function line(row, columns, i) {
  const about = [named(row) ? "" : row.objective, shared.backbone ? "" : row.backbone, row.epoch !== undefined ? `epoch ${row.epoch}` : ""];
  if (row.parent && !row.name.startsWith(row.parent)) about.push(`from ${row.parent}`);
  about.push(row.seeds ? `${row.seeds.length} seeds` : row.seed !== undefined ? `seed ${row.seed}` : "");
  const first = make("th", { class: "first", scope: "row" },
    make("span", { class: "name" }, row.name),
    make("span", { class: "about" }, row.baseline ? "baseline: no method at all" : about.filter(Boolean).join(" · ")),
    row.label && make("span", { class: "label" }, row.label));
  const element = make("tr", row.baseline ? { class: "baseline" } : {}, first);
  columns.forEach((column, j) => element.append(scoreCell(row, column, i, j)));
  return element;
}

function named(row) { // by its objective
  const plain = (text) => (text ?? "").toLowerCase().replaceAll(/[^a-z0-9]/g, "");
  return plain(row.name).includes(plain(row.objective));
}

function scoreCell(row, column, i, j) {
  const cell = row.cells.get(column.number);
  if (!cell) {
    const gap = row.gaps.get(column.place);
    return gap ? make("td", { class: `empty problem ${gap[0] === "failed" ? "failed" : ""}`, title: gap[1] }, gap[0]) : make("td", { class: "empty" }, "–");
  }
  const kind = mark(cell);
  const text = number(cell.value, column.scale);
  const spread = cell.seeds ? make("small", {}, ` ± ${number(cell.deviation, column.scale)}`) : "";
  const spoken = cell.seeds ? `, standard deviation ${number(cell.deviation, column.scale)} over ${cell.count} seeds` : "";
  const pictured = cell.record?.pictures.length || cell.seeds?.some((seed) => seed.cells.get(column.number).record.pictures.length);
  const label = text + spoken + interval(cell, column) + SPOKEN[kind] + (pictured ? ", with pictures" : "");
  const score = make("span", { class: "score" }, pictured ? make("i", { class: "pictured" }) : "", text, spread);
  const button = make("button", { type: "button", tabindex: "-1", "aria-label": label }, score, whisker(cell, column));
  button.dataset.at = `${i},${j}`;
  shownCells.set(button, [row, column, cell]);
  return make("td", { class: ["", "tied", "best"][kind] }, button);
}

function interval(cell, column) {
  if (cell.low === null || cell.high === null) return "";
  return `, 95 % interval ${number(cell.low, column.scale)} to ${number(cell.high, column.scale)}`;
}

function whisker(cell, column) { // one element, drawn by its background: thousands of them are on a page
  const track = make("span", { class: "track" });
  if (cell.value === null) return track;
  const range = column.scales[view()];
  const share = (value) => Math.min(1, Math.max(0, (value - range.low) / range.span));
  const [low, high] = [cell.low ?? cell.value, cell.high ?? cell.value].map(share);
  track.style.setProperty("--low", `${100 * low}%`);
  track.style.setProperty("--high", `${100 * high}%`);
  track.style.setProperty("--at", `${100 * share(cell.value)}%`);
  if (share(cell.value) === 0 || share(cell.value) === 1) track.classList.add("off");
  return track;
}

// ---- provenance of one score, or the seeds behind a mean
function show(row, column, cell, back = null) {
  if (cell.seeds) showSeeds(row, column, cell);
  else showRecord(cell.of ?? row, column, cell, back);
  if (!$("details").open) $("details").showModal();
  $("details-body").scrollTop = 0;
}

function big(cell, column, deviation = "") {
  const text = cell.low === null || cell.high === null ? "" : ` ${number(cell.low, column.scale)} to ${number(cell.high, column.scale)} (95 %)`;
  return make("p", { class: "big" }, number(cell.value, column.scale), make("small", {}, ` ${deviation}${unit(column.scale)}${text}`));
}

function showSeeds(row, column, cell) {
  $("details-title").textContent = row.name;
  const list = cell.seeds.map((seed) => {
    const own = seed.cells.get(column.number);
    const button = make("button", { type: "button" }, make("span", {}, seed.name), make("span", {}, number(own.value, column.scale) + interval(own, column)));
    button.addEventListener("click", () => { show(seed, column, own, [row, column, cell]); $("details-body").focus(); });
    return make("li", {}, button);
  });
  $("details-body").replaceChildren(
    make("p", { class: "where" }, `${column.metric} of ${column.task} on ${column.dataset}, mean and standard deviation of ${cell.count} seeds`),
    big(cell, column, `± ${number(cell.deviation, column.scale)} `),
    make("h3", {}, "Seeds"), make("ul", { class: "seeds" }, ...list));
}

function showRecord(row, column, cell, back) {
  const { record } = cell;
  $("details-title").textContent = row.name;
  const all = back && make("button", { type: "button", class: "back" }, "← All seeds");
  all?.addEventListener("click", () => { show(...back); $("details-body").focus(); });
  const where = `${column.metric} of ${column.task} on ${column.dataset}, ${cell.n} ${record.extra.unit}${cell.n === 1 ? "" : "s"}`;
  const memory = record.memory === null ? null : `${record.memory} MB`;
  const seconds = record.seconds === null ? null : `${record.seconds} s`;
  const checkpoint = Object.fromEntries(["label", "kind", "objective", "backbone", "images_seen", "epoch", "seed", "parent", "weights_digest"].map((k) => [k, row[k]]));
  $("details-body").replaceChildren(
    ...(all ? [all] : []),
    make("p", { class: "where" }, where),
    big(cell, column),
    ...record.curves.flatMap(([title, across, line]) => drawing(title, across, "fraction", [line])),
    ...part("Checkpoint", checkpoint),
    ...part("Protocol", { ...column.protocol, fingerprint: column.fingerprint }),
    ...part("Provenance", { ...record.shared, seconds, "peak memory": memory, date: record.date, record: record.file }),
    ...part("Skipped", record.extra.skipped),
    ...pictures(record.pictures),
    ...part("Notes", Object.fromEntries(record.extra.notes.map((note, i) => [i + 1, note]))),
    ...(row.training ?? []).flatMap((line) => drawing(`Training: ${line[0]}`, "images seen", "", [line])));
}

function pictures(addresses) { // what a task left for a person to look at
  if (!addresses.length) return [];
  const [drawn, others] = [true, false].map((wanted) => addresses.filter((address) => /\.(png|gif)$/.test(address) === wanted));
  const name = (address) => decodeURIComponent(address.split("/").at(-1));
  return [make("h3", {}, "Pictures and data"),
    ...drawn.map((address) => make("figure", {}, make("a", { href: address }, make("img", { src: address, alt: name(address), loading: "lazy" })), make("figcaption", {}, name(address)))),
    make("p", {}, ...others.flatMap((address, i) => [i ? ", " : "", make("a", { href: address }, name(address))]))];
}

function part(title, fields) {
  const present = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== "");
  if (!present.length) return [];
  const list = make("dl");
  for (const [name, value] of present) list.append(make("dt", {}, name.replaceAll("_", " ")), make("dd", { class: code(name) }, plain(value)));
  return [make("h3", {}, title), list];
}

function code(name) {
  return /fingerprint|digest|commit|record/.test(name) ? "code" : "";
}

function plain(value) {
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([name, item]) => `${name} ${plain(item)}`).join(", ");
  return String(value);
}

// ---- figures
function shape(tag, attributes, text) {
  const element = document.createElementNS(document.querySelector("#figures svg").namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawing(title, across, scale, lines) { // heading, chart and, for several lines, their names
  const body = [make("h3", {}, title), chart(title, across, scale, lines)];
  if (lines.length > 1) body.push(make("ul", { class: "names" }, ...lines.map(([name], i) => make("li", { class: `line${i}` }, name))));
  return body;
}

function chart(title, across, scale, lines) {
  const [width, height, left, bottom] = [560, 240, 70, 34];
  const [xs, ys] = [1, 2].map((part) => lines.flatMap((line) => line[part]));
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const bend = across === "component" ? Math.log : (value) => value; // a backbone has a few dozen, raw pixels thousands
  const x = (value) => left + (width - left - 12) * ((bend(value) - bend(x0)) / (bend(x1) - bend(x0) || 1));
  const y = (value) => 10 + (height - bottom - 10) * (1 - (value - y0) / (y1 - y0 || 1));
  const spoken = lines.map(([name, , values]) => `${name} from ${number(values[0], scale)} to ${number(values.at(-1), scale)}`);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart", "aria-label": `${title} by ${across}: ${spoken.join("; ")}` });
  for (const share of [0, 0.5, 1]) {
    const vx = across === "component" ? Math.round(x0 ** (1 - share) * x1 ** share) : x0 + share * (x1 - x0);
    const vy = y0 + share * (y1 - y0);
    svg.append(shape("line", { x1: left, x2: width - 12, y1: y(vy), y2: y(vy), class: "grid" }));
    svg.append(shape("text", { x: left - 6, y: y(vy) + 4, "text-anchor": "end" }, number(vy, scale)));
    svg.append(shape("text", { x: x(vx), y: height - bottom + 16, "text-anchor": ["start", "middle", "end"][2 * share] }, String(Number(vx.toPrecision(4)))));
  }
  svg.append(shape("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, across));
  lines.forEach(([, px, py], i) => svg.append(shape("polyline", { class: `line${i}`, points: px.map((value, k) => `${x(value).toFixed(1)},${y(py[k]).toFixed(1)}`).join(" ") })));
  return svg;
}

function figures() {
  $("figures").hidden = !data.figures.length;
  for (const { title, across, dataset, lines, more } of data.figures) {
    const [heading, ...body] = drawing(`${title}, ${dataset}`, across, "fraction", lines);
    const left = more ? make("p", { class: "about" }, `${more} more checkpoints have this curve: open one of their scores.`) : "";
    $("figures").append(make("figure", {}, heading, ...body, left));
  }
}

// ---- the parts around the table
function options(id, everything, values) {
  $(id).append(make("option", { value: "" }, everything), ...[...new Set(values)].sort().map((v) => make("option", { value: v }, v)));
}

function varying() {
  const values = new Map();
  for (const column of data.columns) {
    for (const [name, value] of Object.entries(column.protocol)) values.set(name, (values.get(name) ?? new Set()).add(value));
  }
  const names = [...values].filter(([name, all]) => (all.size > 1 || name === "task version") && name !== "dataset fingerprint");
  return names.flatMap(([name, all]) => [...all].map((value) => `${name} = ${value}`));
}

function listing(id, titles, lines) {
  if (!lines.length) return;
  $(id).hidden = false;
  const head = make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title))));
  const body = make("tbody", {}, ...lines.map((cells) => make("tr", {}, ...cells.map((cell) => make("td", {}, cell)))));
  $(id).querySelector(".scroll").append(make("table", {}, head, body));
}

function fill() {
  const [methods, steps] = [false, true].map((step) => data.rows.filter((row) => !row.baseline && Boolean(row.step) === step).length);
  const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const tasks = new Set(data.columns.map((c) => c.task)).size;
  const facts = [`${count(methods, "checkpoint")}, ${steps ? `${count(steps, "kept epoch")}, ` : ""}${count(data.rows.length - methods - steps, "baseline")}, ${count(tasks, "task")}. Shares in percent.`];
  if (shared.backbone) facts.push(`Backbone ${shared.backbone}.`);
  $("summary").textContent = facts.join(" ");
  const [warnings, notes] = [true, false].map((wanted) => data.notes.filter((note) => /smoke world/.test(note) === wanted));
  $("warnings").append(...warnings.map((note) => make("p", { class: "smoke" }, note)));
  $("notes").append(...notes.map((note) => make("p", {}, note)));
  $("reading").hidden = !notes.length;
  $("fold").closest("label").hidden = !recipes.length;
  $("steps").closest("label").hidden = !steps;
  options("task", "All tasks", data.columns.map((column) => column.task));
  options("dataset", "All datasets", data.columns.map((column) => column.dataset));
  options("objective", "All objectives", data.rows.map((row) => row.objective));
  options("protocol", "All protocols", varying());
  listing("statuses", ["Checkpoint", "Task", "Dataset", "Status", "Reason", "Remedy"],
    data.statuses.map((s) => [s.checkpoint, s.task, s.dataset, s.status, s.reason, s.remedy]));
  figures();
  $("problems").hidden = !data.problems.length;
  $("problems").querySelector("ul").append(...data.problems.map((line) => make("li", {}, line)));
}

// ---- events
function refilter() {
  state.page = 0;
  draw();
}

$("filters").addEventListener("input", refilter);
$("filters").addEventListener("reset", () => setTimeout(refilter));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("size").addEventListener("change", refilter);
$("previous").addEventListener("click", () => { state.page -= 1; draw(); });
$("next").addEventListener("click", () => { state.page += 1; draw(); });
$("close").addEventListener("click", () => $("details").close());
$("details").addEventListener("click", (event) => { if (event.target === $("details")) $("details").close(); });

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
document.querySelector("#scores tbody").addEventListener("click", (event) => {
  const shown = shownCells.get(event.target.closest("button"));
  if (shown) show(...shown);
});
document.querySelector("#scores tbody").addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move || !event.target.dataset.at) return;
  event.preventDefault();
  let [i, j] = event.target.dataset.at.split(",").map(Number);
  const rows = event.currentTarget.rows;
  for (;;) { // past the gaps, up to the edge
    i += move[0];
    j += move[1];
    const cell = rows[i]?.cells[j + 1];
    if (!cell || j < 0) return;
    const button = cell.querySelector("button");
    if (!button) continue;
    event.target.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
    return;
  }
});

const THEMES = ["auto", "light", "dark"];
$("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  $("theme").textContent = `Theme: ${next}`;
});

fill();
draw();
