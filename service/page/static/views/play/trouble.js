// What went wrong, and what helps.

import { counted, el } from "../../dom.js";

const REMEDIES = {
  aborted: "It was stopped here.",
  broken: "The server may have been stopped or restarted meanwhile; ask again.",
  engine_dead: "The service starts it again by itself; modes of other policies go on.",
  forbidden: "Open this page at the address the service itself has.",
  network: "Is the service still running? This page looks for it by itself.",
  not_ready: "The models are still loading; this page says above when they are there.",
  reward_dead: "The service starts it again by itself; modes of one sample go on.",
  reward_error: "The reward model could not score; the server's log says why.",
  shutting_down: "The service is being stopped; this page looks for it by itself.",
  timeout: "Ask for fewer candidates or tokens, or raise limits.timeout_s.",
  unauthorized: "Enter an API key with the key button above.",
};

// The same question would be refused again.
const FOR_GOOD = new Set(["forbidden", "invalid_input", "prompt_too_long", "unauthorized"]);

// A budget that no measured setting can be chosen by.
const OF_BUDGETS = { not_ready: "The view Tune says how to measure them again." };

/** The server's words with the names of this page's fields in the place of the API's. */
function inPageWords(message) {
  return message.replace(/\bleave (the )?budget out\b/g, "choose no budget").replace(/\bmax_tokens\b/g, "Max tokens");
}

/**
 * A block that tells an ApiError: the server's words, and a remedy where they hold none.
 *
 * `retry`: offered as a button; where the server said when to come back, it counts the seconds first.
 */
export function trouble(error, { retry = null } = {}) {
  const again = retry !== null && !FOR_GOOD.has(error.type);
  const words = inPageWords(error.message);
  // Of a key without the admin role, the server's words say what to do.
  const remedy = /admin role/.test(error.message) ? null : /^the budget/.test(error.message) ? OF_BUDGETS[error.type] : REMEDIES[error.type];
  const when = el("p", { class: "small" });
  const button = el("button", { type: "button", class: "button slim" }, "Try again");
  button.addEventListener("click", () => retry());
  const block = el(
    "div", { class: "error", role: "group", "aria-label": "What went wrong" },
    el("p", {}, words),
    remedy && el("p", { class: "small" }, remedy),
    error.retryAfter !== null && when,
    again && el("p", {}, button),
  );
  if (error.retryAfter !== null) countDown(error.retryAfter, { when, button });
  return block;
}

function countDown(seconds, { when, button }) {
  let left = seconds;
  button.disabled = true;
  const tell = () => {
    const open = left <= 0;
    when.textContent = open ? "There may be room now." : `There may be room in ${counted(left, "second")}.`;
    button.disabled = !open;
    if (open) clearInterval(timer);
    left -= 1;
  };
  const timer = setInterval(tell, 1000);
  tell();
}
