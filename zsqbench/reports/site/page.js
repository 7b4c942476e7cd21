// Shows the data of a page, which window.page holds: a start page or that of a cell. Texts are never read as HTML.
"use strict";

const { page, root } = window;
const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.classList.toggle("dark", isDark);

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

// as page_names in source.py
const cells = page.parts.find((part) => part.listing)?.listing;
function fileOf(at) {
  const name = cells.rows[at][0].replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[.-]+|[.-]+$/g, "") || "cell";
  return `cells/${cells.pages[at] ?? name}.html`;
}

const scripts = {};
function load(name) {
  scripts[name] ??= new Promise((resolve, reject) => {
    const script = make("script", { src: `${root}lib/${name}` });
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new Error(`lib/${name} is not in this folder`)));
    document.head.append(script);
  });
  return scripts[name];
}

function whenSeen(element, action) {
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      action().catch((error) => element.append(make("p", { class: "notice" }, `This part cannot be shown: ${error.message}`)));
    }
  }, { rootMargin: "400px" });
  observer.observe(element);
}

function list(lines, kind) {
  return make("ul", { class: kind }, ...lines.map((line) => make("li", {}, line)));
}

function grid({ heads, rows, labels, bold, links, missing }) {
  const places = (list) => new Set(list.map((place) => place.join(",")));
  const isBold = places(bold), isMissing = places(missing);
  const head = heads.map((line) => make("tr", {}, ...line.map((text, at) => make("th", { class: at < labels && "label", scope: "col" }, text))));
  const body = rows.map((row, down) => make("tr", {}, ...row.map((text, at) => {
    const place = `${down},${at}`;
    const kinds = [at < labels && "label", isBold.has(place) && "bold", isMissing.has(place) && "missing"];
    return make("td", { class: kinds.filter(Boolean).join(" ") }, place in links ? make("a", { href: fileOf(links[place]) }, text) : String(text ?? ""));
  })));
  const isLinked = Object.keys(links).length > 0;
  const isTall = rows.length > 16 && !isLinked;
  return make("div", { class: isTall ? "scroll tall" : "scroll" }, make("table", { class: isLinked ? "grid linked" : "grid" }, make("thead", {}, ...head), make("tbody", {}, ...body)));
}

function text(content) {
  const button = make("button", { type: "button" }, "copy");
  button.addEventListener("click", () => navigator.clipboard.writeText(content).then(() => { button.textContent = "copied"; }));
  return make("div", { class: "box" }, make("pre", {}, content), button);
}

function pictures(list) {
  const figures = list.map(({ name, file }) => {
    const image = make("img", { src: root + file, alt: name, loading: "lazy" });
    return make("figure", {}, make("a", { href: root + file }, image), make("figcaption", {}, name));
  });
  return make("div", { class: "pictures" }, ...figures);
}

function records({ fields, rows }) {
  return rows.map((row) => Object.fromEntries(fields.map((field, at) => [field, row[at]])));
}

const data = {};
function chart({ name, title, spec, data: of }) {
  const drawing = make("div", { class: "drawing" });
  const named = name ? [make("code", { title: "the name for zsqbench figure" }, name)] : [];
  const whole = make("div", { class: spec.facet || spec.concat ? "chart wide" : "chart" }, make("h3", {}, title), ...named, drawing);
  whenSeen(whole, async () => {
    await load("charts.js");
    data[of] ??= records(page.data[of]);
    const options = { mode: "vega-lite", renderer: "svg", actions: false, theme: isDark ? "dark" : undefined };
    const config = { ...page.config, background: "transparent" };
    await window.vegaEmbed(drawing, { ...spec, config, data: { values: data[of] } }, options);
  });
  return whole;
}

function listing({ heads, rows, numbers, choices }) {
  const table = make("table", { class: "display compact", style: "width: 100%" });
  const whole = make("div", { class: "listing" }, table);
  whenSeen(whole, async () => {
    await load("tables.js");
    const { default: DataTable } = await window.tables;
    const escape = (value) => String(value ?? "").replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
    const linked = (value, type, _, { row: at }) => {
      if (type !== "display") return value ?? "";
      return `<a href="${escape(fileOf(at))}">${escape(value)}</a>`;
    };
    const number = (digits) => (value, type) => (type === "display" ? value?.toFixed(digits) : value) ?? "";
    const columns = heads.map((title, at) => ({
      title: escape(title),
      className: at in numbers ? "number" : at === 0 ? "first" : "",
      type: at in numbers ? "num" : "string",
      render: at === 0 ? linked : at in numbers ? number(numbers[at]) : (value, type) => (type === "display" ? escape(value) : value ?? ""),
      columnControl: ["order", choices.includes(at) ? ["searchList"] : ["search"]],
    }));
    new DataTable(table, { data: rows, columns, deferRender: true, order: [], pageLength: 25,
      ordering: { indicators: false, handler: true }, layout: { topStart: "pageLength", topEnd: "search" } });
  });
  return whole;
}

function part(content, at) {
  const parts = [make("h2", { id: `part${at}` }, content.title)];
  if (content.lines) parts.push(list(content.lines));
  if (content.pictures) parts.push(pictures(content.pictures));
  if (content.grid) parts.push(grid(content.grid));
  if (content.text) parts.push(text(content.text));
  if (content.notes && content.grid) parts.push(list(content.notes, "notes"));
  if (content.charts) parts.push(make("div", { class: "charts" }, ...content.charts.map(chart)));
  if (content.listing) parts.push(listing(content.listing));
  if (content.notes && !content.grid) parts.push(list(content.notes, "notes"));
  return make("section", {}, ...parts);
}

function show() {
  const ways = page.back.map(([name, to]) => make("a", { href: to }, `← ${name}`));
  const contents = page.parts.map(({ title }, at) => make("a", { href: `#part${at}` }, title));
  document.getElementById("page").replaceChildren(
    make("nav", {}, ...ways),
    make("h1", {}, page.title),
    ...page.lead.map((line) => make("p", { class: "lead" }, line)),
    make("nav", { "aria-label": "Parts of this page" }, ...contents),
    ...page.parts.map(part),
  );
}

show();
