"use strict";
document.getElementById("again").addEventListener("click", () => location.reload());
// The terminal measures its font once: it must be there first.
const start = window.onload;
window.onload = async (event) => {
  await Promise.allSettled(["", "italic "].map((style) => document.fonts.load(`${style}16px "Roboto Mono"`)));
  start(event);
  new MutationObserver((_, observer) => {
    if (!document.body.classList.contains("-loaded")) return;
    observer.disconnect(); // Connected: keys can be sent from now on.
    document.querySelector(".xterm-helper-textarea").focus();
  }).observe(document.body, { attributeFilter: ["class"] });
};
