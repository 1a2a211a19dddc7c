// Asks for a token, where the daemon wants one.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { visible } from "../format.js";
import { page } from "../page.js";

export default (start) => {
  const submit = (event) => {
    event.preventDefault();
    start(String(new FormData(event.target).get("token")).trim());
  };
  const wrong = api.hasToken() && page.error;
  return html`<main id="main" class="signin"><div class="card">
    <form @submit=${submit}>
      <h1>Sign in to sendoff</h1>
      <p>This daemon shows itself to its operators. Paste the token that stands for you in its configuration, <code>[operators]</code>.</p>
      <label>Token<input type="password" name="token" autocomplete="off" spellcheck="false" required autofocus></label>
      ${wrong ? html`<p class="bad" role="alert">${page.error.status === 401 ? "The daemon does not know this token." : visible(page.error.message)}</p>` : nothing}
      <div class="actions"><button class="main">Sign in</button></div>
      <p class="muted">The token stays in this tab and is gone with it. The page sets no cookie.</p>
    </form>
  </div></main>`;
};
