// The console's keys, what a browser tells the server of itself, and the end of a session.
(() => {
  // Times are shown in this zone; the page's WebSocket, which begins later, brings the cookie.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone) document.cookie = `keepsake_zone=${zone}; path=/console; max-age=31536000; samesite=lax`;
  // Where the key was revoked, or another tab has signed out, the server closes the WebSocket: nothing stays on show.
  document.addEventListener("DOMContentLoaded", () => {
    window.socket?.on("disconnect", async () => {
      const response = await fetch(location.href, { redirect: "manual", headers: { "NiceGUI-Check": "try_reconnect" } });
      if (response.type === "opaqueredirect" || response.status === 403) location.reload();
    });
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector(".search input:not([type=hidden])");
      if (search) { event.preventDefault(); search.focus(); search.select(); }
    } else if (event.key === "Escape" && typing) typing.blur();
  });
})();
