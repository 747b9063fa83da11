// The description of the API beside this page. No validator: nothing leaves this server.
SwaggerUIBundle({ url: "openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null, tryItOutEnabled: true });
