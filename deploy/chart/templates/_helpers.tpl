{{- /* Labels that never change: selectors hold them. */ -}}
{{- define "toygres.selector" -}}
app.kubernetes.io/name: toygres
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "toygres.labels" -}}
{{ include "toygres.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The Secret that the server makes: API token and CA. */ -}}
{{- define "toygres.secret" -}}
{{ .Release.Name }}-server
{{- end }}

{{- /* How the API is spoken to: http or https. */ -}}
{{- define "toygres.scheme" -}}
{{ ternary "https" "http" (or .Values.tls.enabled (ne .Values.tls.existingSecret "")) }}
{{- end }}

{{- /* The names in a certificate of the own CA, separated by commas. */ -}}
{{- define "toygres.tlsNames" -}}
{{- $service := printf "%s.%s" .Release.Name .Release.Namespace -}}
{{ concat (list .Release.Name $service (printf "%s.svc" $service) (printf "%s.svc.%s" $service .Values.clusterDomain)) .Values.tls.names | join "," }}
{{- end }}

{{- /* The namespaces of instances, separated by commas. */ -}}
{{- define "toygres.namespaces" -}}
{{ .Values.namespaces | default (list .Release.Namespace) | join "," }}
{{- end }}
