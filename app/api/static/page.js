"use strict";

// The key stays in this page: it goes into no storage, no cookie and no URL.
const form = document.getElementById("key-form");
const problem = document.getElementById("problem");

async function describe(key) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const reply = await fetch("openapi.json", { headers, credentials: "omit" });
  if (reply.ok) {
    form.hidden = true;
    show(await reply.json(), key);
    return;
  }
  form.hidden = false;
  if (key) {
    const { error } = await reply.json();
    problem.textContent = error.message;
  }
}

function show(spec, key) {
  const page = SwaggerUIBundle({
    spec,
    dom_id: "#api",
    deepLinking: true,
    docExpansion: "none",
    displayRequestDuration: true,
    persistAuthorization: false,
    validatorUrl: null,
    onComplete: () => {
      if (key) page.preauthorizeApiKey("bearer", key);
    },
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  problem.textContent = "";
  describe(document.getElementById("key").value.trim()).catch((error) => {
    problem.textContent = `The server cannot be reached: ${error.message}`;
  });
});

// A server without keys describes itself to everybody.
describe("").catch(() => {
  form.hidden = false;
});
