// Links to reports. A browser sends no key with a page that it opens, so where there is one, a link for
// some minutes is asked for first.

import { apiKey, located, post } from "../../api.js";
import { el } from "../../dom.js";

/** Opens a run's report in a tab of its own, where it is in a sandbox. */
export function reportLink(id, words) {
  const open = async (event) => {
    if (!apiKey()) return;
    event.preventDefault();
    const { url } = await post(`/loadtests/${id}/report-link`, {});
    window.open(located(url), "_blank", "noopener");
  };
  const name = `${words} of run ${id}, in a new tab`;
  return el("a", { href: located(`/loadtests/${id}/report`), target: "_blank", rel: "noopener", "aria-label": name, on: { click: open } }, words);
}
