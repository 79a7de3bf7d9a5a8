// Starts Swagger UI on this server's own description; a key entered on the page at / is used here too.

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
  requestInterceptor: (request) => {
    const key = sessionStorage.getItem("vbon-key");
    if (key) request.headers.authorization = `Bearer ${key}`;
    return request;
  },
});
