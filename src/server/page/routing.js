// The experts of one answer: which of them computed each token, layer by layer. Kept as one string beside the message.

function toBase64(numbers) {
  let bytes = "";
  for (const n of numbers) bytes += String.fromCharCode(n & 255, n >> 8);
  return btoa(bytes);
}

function fromBase64(text) {
  const bytes = atob(text), numbers = [];
  for (let i = 0; i + 1 < bytes.length; i += 2) numbers.push(bytes.charCodeAt(i) | (bytes.charCodeAt(i + 1) << 8));
  return numbers;
}

export class Routing {
  /// layers: [{layer, num_experts, top_k}]
  constructor(layers) {
    this.layers = layers;
    this.pieces = [];  // {text, first, count}: what was written, with its tokens
    this.tokens = 0;
    this.rows = [];    // per token: experts of all layers one after another
    this.counts = layers.map((l) => new Uint32Array(l.num_experts));
  }

  add(text, count, rows) {
    if (count || text) {
      const before = this.pieces.at(-1);
      if (!count && before) before.text += text;
      else this.pieces.push({ text, first: this.tokens, count });
      this.tokens += count;
    }
    for (const row of rows) this.addRow(row.flat());
  }

  addRow(row) {
    this.rows.push(row);
    let at = 0;
    this.layers.forEach((l, i) => {
      for (let k = 0; k < l.top_k; ++k, ++at) if (row[at] < l.num_experts) ++this.counts[i][row[at]];
    });
  }

  /// Pieces that a reader sees: the last one may hold only the end of the answer.
  get shown() { return this.pieces.filter((piece) => piece.text !== ""); }

  /// Tokens that a reader sees.
  get visible() { const last = this.shown.at(-1); return last ? last.first + last.count : 0; }

  /// Per layer the experts of a piece's tokens, ascending; null when it was not computed.
  of(piece) {
    const rows = this.rows.slice(piece.first, piece.first + Math.max(1, piece.count));
    if (!rows.length) return null;
    let at = 0;
    return this.layers.map((l) => {
      const experts = new Set(rows.flatMap((row) => row.slice(at, at + l.top_k)));
      at += l.top_k;
      return [...experts].sort((a, b) => a - b);
    });
  }

  save() {
    return { layers: this.layers, pieces: this.pieces.map(({ text, count }) => [text, count]), experts: toBase64(this.rows.flat()) };
  }

  /// Null for what save() did not write.
  static load(saved) {
    try {
      const layers = saved.layers.map(({ layer, num_experts, top_k }) => ({ layer: +layer, num_experts: +num_experts, top_k: +top_k }));
      const routing = new Routing(layers);
      for (const [text, count] of saved.pieces) routing.add(String(text), +count, []);
      const all = fromBase64(saved.experts), width = routing.layers.reduce((sum, l) => sum + l.top_k, 0);
      for (let at = 0; width > 0 && at + width <= all.length; at += width) routing.addRow(all.slice(at, at + width));
      return routing;
    } catch {
      return null;
    }
  }
}
