// The panel beside the conversation: experts x layers of the chosen token, and the load of a layer's experts over the last minutes.
import { make } from "/message.js";
import { t } from "/words.js";

const byId = (id) => document.getElementById(id);
const kPollMs = 2000, kGap = 1, kFont = "11px system-ui, sans-serif";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const between = (low, value, high) => Math.max(low, Math.min(high, value));

/// A canvas of cells with labels. heat(row, column) is 0..1, mark(row, column) a plain yes; bars(row), 0..1, are drawn to the right.
class Grid {
  constructor(canvas, hover) {
    this.canvas = canvas;
    this.hover = hover;
    canvas.addEventListener("pointermove", (event) => this.point(event));
    canvas.addEventListener("pointerleave", () => { hover.textContent = ""; });
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement.parentElement);
  }
  show(data) { this.data = data; this.draw(); }

  measure() {
    const { rows, columns, bars, rowLabel, smallest, tallest } = this.data, pen = this.canvas.getContext("2d");
    pen.font = kFont;
    const left = 22 + Math.max(...[0, rows - 1].map((r) => pen.measureText(rowLabel(r)).width)), right = bars ? 64 : 0;
    const room = this.canvas.parentElement.clientWidth - left - right - 2;
    const width = between(smallest, Math.floor(room / columns), 36);
    const height = between(4, Math.floor(360 / rows), Math.min(tallest, Math.max(12, bars ? 18 : width)));
    return { left, right, width, height, top: 2, bottom: this.data.columnName ? 32 : 18 };
  }

  draw() {
    if (!this.data || !this.canvas.parentElement.clientWidth) return;
    const { rows, columns, heat, mark, bars } = this.data, m = (this.size = this.measure());
    const pen = this.canvas.getContext("2d"), scale = devicePixelRatio || 1;
    const width = m.left + columns * m.width + m.right, height = m.top + rows * m.height + m.bottom;
    this.canvas.width = width * scale, this.canvas.height = height * scale;
    this.canvas.style.width = `${width}px`, this.canvas.style.height = `${height}px`;
    pen.scale(scale, scale);
    if (width > this.canvas.parentElement.clientWidth) this.canvas.parentElement.tabIndex = 0;
    else this.canvas.parentElement.removeAttribute("tabindex");
    const cell = colour("--cell"), hot = colour("--heat"), marked = colour("--mark");
    const gap = Math.min(m.width, m.height) > 5 ? kGap : Math.min(m.width, m.height) > 3 ? 0.5 : 0;
    const box = (x, y) => pen.fillRect(x + gap / 2, y + gap / 2, m.width - gap, m.height - gap);
    for (let r = 0; r < rows; ++r) {
      for (let c = 0; c < columns; ++c) {
        const x = m.left + c * m.width, y = m.top + r * m.height, value = heat(r, c);
        pen.globalAlpha = 1;
        pen.fillStyle = cell;
        box(x, y);
        if (value > 0) { pen.fillStyle = hot; pen.globalAlpha = 0.15 + 0.85 * Math.min(1, value); box(x, y); }
        if (mark?.(r, c)) { pen.globalAlpha = 1; pen.fillStyle = marked; box(x, y); }
      }
    }
    pen.globalAlpha = 1;
    this.label(pen, m);
    if (bars) this.drawBars(pen, m);
  }

  label(pen, m) {
    const { rows, columns, rowLabel, columnLabel } = this.data;
    pen.fillStyle = colour("--soft");
    pen.font = kFont;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const rowStep = Math.ceil(12 / m.height);
    for (let r = 0; r < rows; r += rowStep) pen.fillText(rowLabel(r), m.left - 5, m.top + (r + 0.5) * m.height);
    this.axes(pen, m);
    const y = m.top + rows * m.height + 9, columnStep = Math.ceil(30 / m.width);
    for (let c = 0; c < columns; ++c) {
      const text = columnLabel(c, columnStep);
      if (!text) continue;
      const edge = m.width > 12 ? "center" : c === 0 ? "left" : c === columns - 1 ? "right" : "center";
      pen.textAlign = edge;
      pen.fillText(text, m.left + (c + { left: 0, center: 0.5, right: 1 }[edge]) * m.width, y);
    }
  }

  /// Names of both directions.
  axes(pen, m) {
    const { rows, columns, rowName, columnName } = this.data;
    pen.save();
    pen.textAlign = "center";
    if (columnName) pen.fillText(columnName, m.left + (columns * m.width) / 2, m.top + rows * m.height + 24);
    pen.translate(6, m.top + (rows * m.height) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(rowName, 0, 0);
    pen.restore();
  }

  drawBars(pen, m) {
    const { rows, columns, bars, even } = this.data, x = m.left + columns * m.width + 8, width = m.right - 10;
    pen.fillStyle = colour("--heat");
    for (let r = 0; r < rows; ++r) pen.fillRect(x, m.top + r * m.height + 0.5, Math.max(1, width * bars(r)), Math.max(1, m.height - 1));
    pen.fillStyle = colour("--soft");
    pen.fillRect(x + width * even, m.top, 1, rows * m.height);
  }

  point(event) {
    if (!this.data || !this.size) return;
    const box = this.canvas.getBoundingClientRect(), m = this.size;
    const c = Math.floor((event.clientX - box.left - m.left) / m.width), r = Math.floor((event.clientY - box.top - m.top) / m.height);
    const inside = r >= 0 && r < this.data.rows && c >= 0 && c < this.data.columns;
    this.hover.textContent = inside ? this.data.tell(r, c) : "";
  }
}

function table(heads, rows) {
  const line = (name, cells) => make("tr", {}, ...cells.map((text) => make(name, { textContent: text })));
  return make("table", {}, make("thead", {}, line("th", heads)), make("tbody", {}, ...rows.map((cells) => line("td", cells))));
}

function quoted(text) { return `“${text.trim() ? text.trim() : text.includes("\n") ? "↵" : "␣"}”`; }

export class ExpertPanel {
  /// get(path) resolves with a JSON answer.
  constructor({ get, onopen, onclose }) {
    this.get = get;
    this.onopen = onopen;
    this.onclose = onclose;
    this.tokenGrid = new Grid(byId("token-map"), byId("token-hover"));
    this.loadGrid = new Grid(byId("load-map"), byId("load-hover"));
    byId("show-experts").addEventListener("click", () => (this.open ? this.close() : this.show("token")));
    byId("hide-experts").addEventListener("click", () => this.close());
    for (const tab of this.tabs()) tab.addEventListener("click", () => this.select(tab));
    byId("tab-token").parentElement.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = this.tabs().find((tab) => tab !== document.activeElement);
      other.focus();
      this.select(other);
    });
    byId("layer").addEventListener("change", () => this.poll());
    document.addEventListener("visibilitychange", () => this.poll());
    this.explain(null);
  }
  tabs() { return [byId("tab-token"), byId("tab-load")]; }
  get open() { return !byId("experts").hidden; }

  show(tab) {
    byId("experts").hidden = false;
    document.body.classList.add("with-experts");
    byId("show-experts").setAttribute("aria-expanded", "true");
    this.select(byId(`tab-${tab}`));
    this.onopen();
  }
  close() {
    if (!this.open) return;
    const inside = byId("experts").contains(document.activeElement);
    byId("experts").hidden = true;
    document.body.classList.remove("with-experts");
    byId("show-experts").setAttribute("aria-expanded", "false");
    if (inside) byId("show-experts").focus();
    this.onclose();
  }
  select(tab) {
    for (const other of this.tabs()) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    this.tokenGrid.draw();
    this.poll();
  }
  redraw() { this.tokenGrid.draw(); this.loadGrid.draw(); }

  // ---- one token

  /// Why there is no map, or null for the usual hint.
  explain(reason) {
    byId("token-text").textContent = reason ?? t("Choose a token of an answer to see which experts computed it.");
    byId("token-figure").hidden = byId("token-table").hidden = true;
  }

  showToken(routing, piece) {
    const place = [`${piece.first + 1}${piece.count > 1 ? `–${piece.first + piece.count}` : ""}`, routing.visible, quoted(piece.text)];
    const chosen = routing.of(piece);
    if (!chosen) return this.explain(t("Token {0} of {1}, {2}: the answer ended with it, so that no expert has computed it.", ...place));
    const { layers, counts } = routing, columns = Math.max(...layers.map((l) => l.num_experts)), most = counts.map((c) => Math.max(1, ...c));
    const used = new Set(chosen.flatMap((experts, r) => experts.map((e) => `${r}/${e}`))).size;
    byId("token-text").textContent = t("Token {0} of {1}, {2}: {3} experts in {4} layers.", ...place, used, layers.length);
    byId("token-figure").hidden = byId("token-table").hidden = false;
    const sets = chosen.map((experts) => new Set(experts));
    this.tokenGrid.show({
      rows: layers.length, columns, smallest: 4, tallest: 26, rowName: t("layer"), columnName: t("expert"),
      heat: (r, c) => (0.75 * (counts[r][c] ?? 0)) / most[r],
      mark: (r, c) => sets[r].has(c),
      rowLabel: (r) => `${layers[r].layer}`,
      columnLabel: (c, step) => (c % step === 0 ? `${c}` : ""),
      tell: (r, c) => t("Layer {0}, expert {1}: {2} of {3} tokens", layers[r].layer, c, counts[r][c] ?? 0, routing.rows.length),
    });
    const lines = layers.map((l, r) => [l.layer, chosen[r].join(", ")]);
    byId("token-table").lastElementChild.replaceChildren(table([t("Layer"), t("Experts")], lines));
  }

  // ---- load

  async poll() {
    clearTimeout(this.timer);
    if (!this.open || byId("pane-load").hidden || document.visibilityState === "hidden") return;
    try {
      if (!byId("layer").options.length) await this.fillLayers();
      this.showLoad(await this.get(`/expert_load/${byId("layer").value}`));
      this.timer = setTimeout(() => this.poll(), kPollMs);
    } catch (error) {
      byId("load-text").textContent = error.message;
      byId("load-figure").hidden = byId("load-table").hidden = true;
      this.timer = setTimeout(() => this.poll(), 5 * kPollMs);
    }
  }
  async fillLayers() {
    const { layers } = await this.get("/expert_load");
    byId("layer").replaceChildren(...layers.map((l) => make("option", { value: l.layer, textContent: l.layer })));
  }

  showLoad(load) {
    const columns = Math.round(load.window_s / load.span_s), sum = load.recent.reduce((a, b) => a + b, 0), most = Math.max(1, ...load.recent);
    const spans = new Array(columns).fill(null);
    for (const span of load.history) {
      const at = columns - 1 - Math.floor(span.age_s / load.span_s);
      if (at >= 0) spans[at] = span.tokens;
    }
    const hottest = Math.max(1, ...load.history.flatMap((span) => span.tokens)), busiest = load.recent.indexOf(Math.max(...load.recent));
    byId("ratio").textContent = load.imbalance ? t("imbalance {0}", load.imbalance.toFixed(2)) : t("idle");
    byId("ratio").title = t("Busiest expert over the mean: 1 is even");
    byId("load-text").textContent = sum === 0
      ? t("Nothing was computed in the last {0} minutes.", load.window_s / 60)
      : t("Expert {0} is the busiest of {1} with {2} % of the choices of the last {3} minutes.", busiest, load.num_experts,
        Math.round((100 * load.recent[busiest]) / sum), load.window_s / 60);
    byId("load-figure").hidden = byId("load-table").hidden = false;
    this.loadGrid.show({
      rows: load.num_experts, columns, smallest: 2, tallest: 18, rowName: t("expert"),
      heat: (r, c) => (spans[c]?.[r] ?? 0) / hottest,
      bars: (r) => load.recent[r] / most, even: sum / load.num_experts / most,
      rowLabel: (r) => `${r}`,
      columnLabel: (c) => (c === 0 ? t("{0} min ago", load.window_s / 60) : c === columns - 1 ? t("now") : ""),
      tell: (r, c) => t("Expert {0}, {1} s ago: {2} tokens; {3} in all", r, (columns - 1 - c) * load.span_s, spans[c]?.[r] ?? 0, load.recent[r]),
    });
    byId("load-table").lastElementChild.replaceChildren(table([t("Expert"), t("Tokens"), t("Share")],
      load.recent.map((n, e) => [e, n, sum ? `${((100 * n) / sum).toFixed(1)} %` : "–"])));
  }
}
