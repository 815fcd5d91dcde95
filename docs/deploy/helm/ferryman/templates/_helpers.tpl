{{- define "ferryman.name" -}}
{{- printf "%s-collector" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "ferryman.selector" -}}
app.kubernetes.io/name: ferryman-collector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ferryman.labels" -}}
{{ include "ferryman.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "ferryman.passwordSecret" -}}
{{- .Values.database.passwordSecret | default (printf "%s-database" (include "ferryman.name" .)) -}}
{{- end -}}
