// One answer from /v1/chat/completions, as events.
import { t } from "/words.js";

/// Calls each(payload) for the data of every event; true when the stream said that it is complete.
async function readEvents(response, each) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return false;
    text += decoder.decode(value, { stream: true });
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (!event.startsWith("data:")) continue;
      const payload = event.slice(5).trim();
      if (payload === "[DONE]") return true;
      each(JSON.parse(payload));
    }
  }
}

export function headers(key) {
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

/// What the server's answer says went wrong.
export async function failure(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? t("The server answered {0}.", response.status));
}

/// on.piece(text, number of tokens, rows of experts), on.end(reason). Resolves with {tokens, first_ms, per_second}; throws what the server
/// or the connection says, AbortError after `signal`.
export async function ask(request, key, signal, on) {
  const began = performance.now();
  let first = 0, last = 0, tokens = 0, ended = false, decode_ms = 0;
  const figures = () => {
    const taken = decode_ms || last - first;  // what arrived in one piece says nothing about speed, but the server knows
    return { tokens, first_ms: first ? first - began : null, per_second: tokens > 1 && taken > 0 ? ((tokens - 1) * 1000) / taken : null };
  };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(key), body: JSON.stringify(request), signal });
  if (!response.ok) throw await failure(response);
  const complete = await readEvents(response, (chunk) => {
    if (chunk.error) throw new Error(chunk.error.message);
    decode_ms = chunk.timings?.decode_ms ?? 0;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const count = choice.token_ids?.length ?? (choice.delta?.content ? 1 : 0);  // of servers without token ids: one a chunk
    if (count) {
      last = performance.now();
      first ||= last;
      tokens += count;
    }
    const text = choice.delta?.content ?? "", rows = choice.routed_experts ?? [];
    if (count || text || rows.length) on.piece(text, count, rows, figures());
    if (choice.finish_reason) { ended = true; on.end(choice.finish_reason); }
  });
  if (!complete && !ended) throw new Error(t("The connection ended before the answer did."));
  return figures();
}
